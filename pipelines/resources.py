"""What assets are given: where artefacts live, which recipe holds, and MLflow."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from clipgen_core import logs
from clipgen_core.errors import Interrupted, MlflowAway
from clipgen_core.mlflow_tracker import Group, mlflow_run
from clipgen_core.recipes import DEFAULT, RECIPES, Recipe, named
from clipgen_core.schema import digest_of
from clipgen_core.storage import DEFAULT_ROOT
from clipgen_core.tracking import LOCAL_FOLDER, default_uri
from pipelines.preflight import begins_run, selected

if TYPE_CHECKING:
    from clipgen_core.mlflow_tracker import MlflowTracker
    from clipgen_core.registry.champions import Registry
    from clipgen_core.storage import Storage

TRAINED = "trained"
AWAY_TRIES = 20  # how often a step is tried again while MLflow is away
AWAY_PAUSE = 30  # seconds until then


class StorageResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The root under which all artefacts live: a local folder or an fsspec URL."""

    root: str = DEFAULT_ROOT

    def open(self) -> "Storage":
        from clipgen_core.storage import Storage

        return Storage(self.root)


class ImagesResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Which images are taken, and which CLIP embeds them."""

    source: str = Field(default="", description="A folder of images: local, or an fsspec URL (s3://…).")
    clip: str = Field(
        default=TRAINED,
        description="hub:MODEL/PRETRAINED, local-dir:FOLDER, or `trained`: what clip_checkpoint made.",
    )

    def require_source(self) -> str:
        """The source, or how to name one.

        Raises:
            dg.Failure: none is set.
        """
        if not self.source:
            raise dg.Failure("no images are given: set resources.images.config.source, or CLIPGEN_SOURCE")
        return self.source


class RecipeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The named configuration of all stages: see clipgen_core.recipes."""

    name: str = Field(default=DEFAULT, description=f"One of {', '.join(RECIPES)}: see `clipgen settings`.")

    def override(self, overrides: Mapping[str, Any]) -> Recipe:
        """The recipe with other values for some settings.

        Args:
            overrides: The new values by dotted name, the stage first, as `StageConfig.overrides` gives them.

        Returns:
            A frozen recipe; the asset takes its stage's config from it.

        Raises:
            ClipgenError: There is no such recipe or setting, or a value is not allowed.
        """
        return named(self.name).override(overrides)


class MlflowResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """MLflow at `tracking_uri`, else at MLFLOW_TRACKING_URI, else a local SQLite file."""

    tracking_uri: str | None = None
    local_folder: str = LOCAL_FOLDER
    model: str = Field(default="clip-gen", description="The registered model's name; one for each root.")

    @property
    def uri(self) -> str:
        return self.tracking_uri or default_uri(self.local_folder)

    def registry(self, context: dg.AssetExecutionContext, out: "Storage") -> "Registry":
        """The registered model's versions, and the champions of a root.

        Args:
            context: The context of the asset.
            out: The root.

        Returns:
            The registry.

        Raises:
            MlflowAway: MLflow does not answer, and the run begins with this step.
            dg.RetryRequested: It does not answer, in a later step.
        """
        from clipgen_core.registry.champions import Registry

        with _waiting_for_mlflow(context):
            return Registry.at(self.uri, out, self.model)

    @contextmanager
    def run(
        self, context: dg.AssetExecutionContext, upstream: Mapping[str, str], training: object = None
    ) -> Iterator["MlflowTracker"]:
        """One MLflow run for one materialisation, named after the asset.

        Its tags name the Dagster run, the partition and what the asset is made from.

        Args:
            context: The context of the asset.
            upstream: The digest, or else the address, of each input by its name.
            training: What identifies a training beside its inputs: its root and settings, as values of JSON.

        Yields:
            The tracker of the run.

        Raises:
            MlflowAway: MLflow does not answer, and the run begins with this step.
            dg.RetryRequested: It does not answer, in a later step.
            DagsterExecutionInterruptedError: A training stopped on request. A run that was terminated ends as
                CANCELED by it, any other as FAILURE, so that it can be retried.
        """
        asset = context.asset_key.to_user_string()
        tags = {"dagster.run_id": context.run.run_id, "dagster.asset": asset, **_note(context)}
        if context.assets_def.partitions_def:
            tags["dagster.partition"] = context.partition_key
        tags |= {f"upstream.{name}": value for name, value in upstream.items()}
        folder = Path(self.local_folder).resolve()
        artifacts = f"file://{folder}/artifacts" if self.uri.startswith("sqlite:") else None
        key = digest_of([asset, dict(upstream), training]) if training else None
        opened = mlflow_run(
            asset,
            tracking_uri=self.uri,
            artifacts=artifacts,
            tags=tags,
            training=key,
            group=_group(context),
        )
        try:
            with ExitStack() as stack:
                with _waiting_for_mlflow(context):
                    tracker = stack.enter_context(opened)
                ids = {"dagster_run": context.run.run_id, "asset": asset, "mlflow_run": tracker.run_id}
                with logs.bound(**ids):
                    yield tracker
        except Interrupted as error:
            context.log.warning(str(error))
            raise dg.DagsterExecutionInterruptedError(str(error)) from error

    def links(self, tracker: "MlflowTracker", **artifacts: str) -> dict[str, Any]:
        """Metadata that leads from a materialisation to its MLflow run.

        Args:
            tracker: The run.
            **artifacts: Files of the run that get a link of their own, by the name of the metadata.

        Returns:
            The run's id as `mlflow_run`. Where MLflow has web pages also their addresses: the run's as
            `mlflow`, and those of `artifacts`. CLIPGEN_MLFLOW_PAGE says where people open MLflow, if not at
            the tracking URI.
        """
        from clipgen_core.tracking import without_password

        run_id = {"mlflow_run": tracker.run_id}
        page = os.environ.get("CLIPGEN_MLFLOW_PAGE") or without_password(self.uri)
        if not page.startswith("http"):
            return run_id
        run = f"{page.rstrip('/')}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"
        addresses = {"mlflow": run} | {name: f"{run}/artifacts/{file}" for name, file in artifacts.items()}
        return run_id | {name: dg.MetadataValue.url(address) for name, address in addresses.items()}


def run_page(run_id: str) -> str:
    """The page of a run, where CLIPGEN_DAGSTER_PAGE says at which address people open Dagster; else empty."""
    page = os.environ.get("CLIPGEN_DAGSTER_PAGE")
    return f"{page.rstrip('/')}/runs/{run_id}" if page else ""


def _note(context: dg.AssetExecutionContext) -> dict[str, str]:
    """The description of an MLflow run: a link to Dagster."""
    page = run_page(context.run.run_id)
    return {"mlflow.note.content": f"[The run in Dagster]({page})"} if page else {}


def _group(context: dg.AssetExecutionContext) -> Group | None:
    """The MLflow run under which those of a Dagster run are shown, if that has several steps."""
    if len(selected(context)) == 1:
        return None
    run = context.instance.get_run_by_id(context.run.run_id) or context.run  # with the tags of its first step
    tags = {"dagster.run_id": run.run_id, **_note(context)}
    tags |= {name: value for name, value in run.tags.items() if name.startswith("clipgen/")}
    return Group(run.job_name, run.run_id, tags)


@contextmanager
def _waiting_for_mlflow(context: dg.AssetExecutionContext) -> Iterator[None]:
    """A step that comes after others is tried again while MLflow is away; meanwhile its slot is free."""
    try:
        yield
    except MlflowAway as error:
        if begins_run(context):
            raise
        context.log.warning(f"{error}; trying again for {AWAY_TRIES * AWAY_PAUSE // 60} minutes")
        raise dg.RetryRequested(max_retries=AWAY_TRIES, seconds_to_wait=AWAY_PAUSE) from error
