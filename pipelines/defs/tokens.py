import dagster as dg

from pipelines.cluster import node
from pipelines.conditions import WHEN_FRESH
from pipelines.config import StageConfig, of_stage
from pipelines.resources import RecipeResource, StorageResource


@of_stage("tokens")
class TokenShardsConfig(StageConfig):
    """Settings of the stage tokens."""


@dg.asset(
    group_name="tokens",
    kinds={"parquet", "pytorch"},
    owners=["team:data"],
    deps=["raw_images", "clip_embeddings", "near_duplicates", "vqgan_checkpoint"],
    pool="gpu",
    op_tags=node(memory="16Gi", gpu=True),
    automation_condition=WHEN_FRESH,
)
def token_shards(
    context: dg.AssetExecutionContext,
    config: TokenShardsConfig,
    storage: StorageResource,
    recipe: RecipeResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Every picture as codes beside its embedding, in Parquet parts with a checked manifest."""
    from clipgen_core.stages import tokens
    from clipgen_core.tracking import NullTracker

    out = storage.open()
    result = tokens.run(
        recipe.override(config.overrides()).tokens,
        images=out.images,
        embeddings=out.current("embeddings", "token_shards").path,
        vqgan=out.current("vqgan", "token_shards").path,
        out=out,
        tracker=NullTracker(),
    )
    manifest = result.manifest
    return dg.MaterializeResult(
        metadata={
            "shards": dg.MetadataValue.path(result.shards),
            "dagster/row_count": manifest.rows,
            "parts": len(manifest.train) + len(manifest.validation),
            "codes_per_picture": manifest.grid**2,
            "codebook_usage": manifest.codebook_usage,
            "codebook_perplexity": manifest.codebook_perplexity,
            "images_digest": manifest.images_digest,
            "vqgan_digest": manifest.vqgan_digest,
            "clip_key": manifest.clip_key,
        },
        data_version=dg.DataVersion(result.digest),
    )
