"""The asset `token_shards`: images as discrete codes, which the transformer is trained on.

Knows the stage's settings and results; knows nothing of VQGANs or of the shards' format.
"""

import dagster as dg

from pipelines import report
from pipelines.cluster import node
from pipelines.conditions import WHEN_FRESH
from pipelines.config import StageConfig, of_stage
from pipelines.preflight import check_run
from pipelines.resources import MlflowResource, RecipeResource, StorageResource
from pipelines.upstream import artefact, upstream


@of_stage("tokens")
class TokenShardsConfig(StageConfig):
    """Settings of the stage tokens."""


@dg.asset(
    group_name="tokens",
    kinds={"parquet", "pytorch"},
    owners=["team:data"],
    code_version="1",
    deps=["raw_images", "clip_embeddings", "near_duplicates", "vqgan_checkpoint"],
    pool="gpu",
    op_tags=node("tokens", memory=16),
    automation_condition=WHEN_FRESH,
)
def token_shards(
    context: dg.AssetExecutionContext,
    config: TokenShardsConfig,
    storage: StorageResource,
    recipe: RecipeResource,
    mlflow: MlflowResource,
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """The codes of every image beside its embedding, in Parquet files that a manifest lists and checks."""
    from clipgen_core.data.tokens import columns
    from clipgen_core.stages import tokens

    check_run(context, storage=storage, recipe=recipe, mlflow=mlflow)
    out = storage.open()
    embeddings, vqgan = (upstream(context, out, name) for name in ("embeddings", "vqgan"))
    stage = recipe.override(config.overrides()).tokens
    with mlflow.run(context, {"embeddings": embeddings.digest, "vqgan": vqgan.digest}) as tracker:
        result = tokens.run(
            stage,
            images=out.images,
            embeddings=embeddings.path,
            vqgan=vqgan.path,
            out=out,
            tracker=tracker,
        )
        tracker.tags({"upstream.images": result.manifest.images_digest})
    manifest = result.manifest
    return dg.MaterializeResult(
        metadata={
            **artefact(out, result.shards, result.digest),
            **report.schema(columns(result.shards, manifest)),
            **mlflow.links(tracker),
            "dagster/row_count": manifest.rows,
            "parts": len(manifest.train) + len(manifest.validation),
            "where": manifest.where or "all images",
            "images_selected": result.selected,
            "images_total": result.total,
            "codes_per_image": manifest.grid**2,
            "codebook_usage": manifest.codebook_usage,
            "codebook_perplexity": manifest.codebook_perplexity,
            "images_digest": manifest.images_digest,
            "vqgan_digest": manifest.vqgan_digest,
            "clip_key": manifest.clip_key,
        },
        data_version=dg.DataVersion(result.digest),
    )
