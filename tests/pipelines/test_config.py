"""What the launchpad shows and Dagster checks before a run begins: the settings of each stage."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from clipgen_core.recipes import Recipe, named
from clipgen_core.settings.catalogue import settings_of
from pipelines.config import StageConfig, TrainingConfig, of_stage
from pipelines.definitions import defs
from pipelines.resources import RecipeResource

ASSETS = {
    "clip_checkpoint": "clip",
    "raw_images": "images",
    "clip_embeddings": "embeddings",
    "near_duplicates": "duplicates",
    "vqgan_checkpoint": "vqgan",
    "token_shards": "tokens",
    "transformer_checkpoint": "transformer",
    "evaluation_report": "evaluation",
}


@of_stage("vqgan")
class VqganConfig(TrainingConfig):
    """Settings of the stage vqgan, and one of the asset's own."""

    limit: int = 3


@of_stage("transformer")
class TransformerConfig(StageConfig):
    pass


@pytest.fixture(scope="module")
def job() -> dg.JobDefinition:
    assets = dg.AssetSelection.assets(*ASSETS)
    return dg.Definitions.merge(
        defs(), dg.Definitions(jobs=[dg.define_asset_job("all", selection=assets)])
    ).resolve_job_def("all")


def shown(fields: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The fields of a config schema that hold a value, by dotted name."""
    for name, field in fields.items():
        if hasattr(field.config_type, "fields"):
            yield from shown(field.config_type.fields, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", field


def fields_of(job: dg.JobDefinition, asset: str) -> dict[str, Any]:
    ops: Any = job.run_config_schema.config_type
    config = ops.fields["ops"].config_type.fields[asset].config_type.fields["config"]
    return dict(shown(config.config_type.fields, ASSETS[asset]))


def check(job: dg.JobDefinition, asset: str, config: dict[str, Any]) -> None:
    """As Dagster checks a run config before the run is launched."""
    required = {"clip_checkpoint": {"config": {"captions": "captions.csv"}}}
    dg.validate_run_config(job, {"ops": required | {asset: {"config": config}}})


def test_every_stage_has_an_asset() -> None:
    assert set(ASSETS.values()) == set(Recipe.model_fields)


@pytest.mark.parametrize("asset", ASSETS)
def test_the_launchpad_shows_every_setting_and_its_meaning(job: dg.JobDefinition, asset: str) -> None:
    fields = fields_of(job, asset)
    for setting in settings_of(getattr(named("demo"), ASSETS[asset]), f"{ASSETS[asset]}."):
        field = fields[setting.name]
        assert not field.is_required
        if setting.name != "evaluation.judge":  # the asset accepts one more kind of CLIP, and says so
            assert field.description.startswith(setting.meaning)
            assert "In the recipe demo: " in field.description


@pytest.mark.parametrize(
    ("asset", "config", "message"),
    [
        ("vqgan_checkpoint", {"train": {"step": 3}}, 'unexpected config entry "step"'),
        ("vqgan_checkpoint", {"overrides": {"train.steps": 3}}, 'unexpected config entry "overrides"'),
        ("vqgan_checkpoint", {"train": {"steps": "many"}}, "not valid for expected type"),
        ("vqgan_checkpoint", {"model": {"quantizer": {"kind": "x"}}}, "ema | cosine | simvq | fsq"),
        ("vqgan_checkpoint", {"model": {"channels": 64}}, "must be list"),
        ("vqgan_checkpoint", {"workers_on": "x"}, "'here', 'ray'"),
        ("token_shards", {"compute": {"where": "x"}}, "local | ray"),
        ("evaluation_report", {"thresholds": {"max_copies": "x"}}, "not valid for expected type"),
    ],
)
def test_a_wrong_name_or_type_is_refused_before_the_run(
    job: dg.JobDefinition, asset: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as raised:
        check(job, asset, config)
    assert message in str(raised.value) and f"root:ops:{asset}:config" in str(raised.value)


def test_what_dagster_reads_becomes_overrides_of_the_recipe() -> None:
    seen: list[VqganConfig] = []

    @dg.asset
    def trained(config: VqganConfig) -> None:
        seen.append(config)

    given = {
        "train": {"steps": 10, "betas": [0.8, 0.9], "seed": None, "learning_rate": 1},
        "model": {"quantizer": {"kind": "cosine"}},
        "perceptual_blocks": None,
        "limit": 5,
    }
    assert dg.materialize([trained], run_config={"ops": {"trained": {"config": given}}}).success
    assert seen[0].overrides() == {
        "vqgan.model.quantizer.kind": "cosine",
        "vqgan.train.steps": 10,
        "vqgan.train.learning_rate": 1,
        "vqgan.train.betas": [0.8, 0.9],
        "vqgan.perceptual_blocks": None,  # null is a value of this one, and not of the seed
    }
    stage = RecipeResource(name="long").override(seen[0].overrides()).vqgan
    assert stage.train.betas == (0.8, 0.9) and stage.model.quantizer.kind == "cosine"
    assert stage.train.seed == 0 and stage.perceptual_blocks is None
    assert stage.model.quantizer.codebook_size == named("long").vqgan.model.quantizer.codebook_size
    assert seen[0].limit == 5


def test_nothing_given_overrides_nothing() -> None:
    assert TransformerConfig().overrides() == VqganConfig().overrides() == {}


def test_every_value_of_a_recipe_passes_through() -> None:
    recipe = named("xl")
    config = TransformerConfig(**recipe.transformer.model_dump(mode="json"))
    assert named("demo").override(config.overrides()).transformer == recipe.transformer
