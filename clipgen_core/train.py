"""Train one stage on what the stages before it left under a root.

Knows which artefacts each training stage reads; knows nothing of who starts it: the command line, torchrun,
Ray or Dagster.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from clipgen_core import logs
from clipgen_core.errors import ClipgenError

if TYPE_CHECKING:
    from clipgen_core.recipes import Recipe
    from clipgen_core.storage import Storage
    from clipgen_core.tracking import Tracker

TrainingStage = Literal["clip", "vqgan", "transformer"]


def train(
    stage: TrainingStage,
    root: str,
    recipe: "Recipe | str",
    overrides: Mapping[str, Any] | None = None,
    *,
    captions: str | None = None,
    clip: str | None = None,
    tokens: str | None = None,
    texts: str | None = None,
    mlflow_run: str | None = None,
) -> str:
    """Train one stage, or resume its training from the latest checkpoint.

    Each of several processes calls this; they find each other as torchrun and Ray tell them to.

    Args:
        stage: What to train.
        root: Where artefacts are stored: a folder or an fsspec URL.
        recipe: The configuration, or the name of a recipe.
        overrides: New values for single settings of the recipe by dotted name, the stage first:
            `{"vqgan.train.steps": 10}`.
        captions: For the stage clip: a CSV file with the columns file and caption.
        clip: For the stage vqgan: the CLIP that measures perceptual distance, as ClipEncoder takes it; that
            of the latest embeddings under the root by default.
        tokens: For the stage transformer: the folder of the token shards; the latest under the root by
            default.
        texts: For the stage transformer: a file of texts like the prompts to come, one per line.
        mlflow_run: Id of the MLflow run to log to, at MLFLOW_TRACKING_URI. Without it, nothing is logged.

    Returns:
        The checkpoint of the trained model; for the stage clip, the reference of the CLIP.

    Raises:
        ClipgenError: An unknown recipe or setting, a value that is not allowed, or a missing input.
        Interrupted: A stop was requested; a checkpoint was saved.
    """
    from clipgen_core.recipes import named
    from clipgen_core.storage import Storage
    from clipgen_core.training import distributed

    chosen = named(recipe) if isinstance(recipe, str) else recipe
    chosen = chosen.override(overrides or {})
    logs.take_over()
    distributed.start()
    out = Storage(root)
    with _tracker(mlflow_run if distributed.rank() == 0 else None) as tracker:
        if stage == "clip":
            return _train_clip(chosen, captions, out, tracker)
        if stage == "vqgan":
            return _train_vqgan(chosen, clip, out, tracker)
        return _train_transformer(chosen, tokens, texts, out, tracker)


def _train_clip(recipe: "Recipe", captions: str | None, out: "Storage", tracker: "Tracker") -> str:
    from clipgen_core.stages import clip

    if captions is None:
        raise ClipgenError("training a CLIP needs captioned images: give --captions FILE.csv")
    return clip.run(recipe.clip, captions=captions, out=out, tracker=tracker).clip


def _train_vqgan(recipe: "Recipe", clip: str | None, out: "Storage", tracker: "Tracker") -> str:
    from clipgen_core.data.embeddings import EmbeddingTable
    from clipgen_core.stages import vqgan

    clip = clip or EmbeddingTable(out.current("embeddings", "training the VQGAN").path).clip
    return vqgan.run(recipe.vqgan, images=out.images, clip=clip, out=out, tracker=tracker).checkpoint


def _train_transformer(
    recipe: "Recipe", tokens: str | None, texts: str | None, out: "Storage", tracker: "Tracker"
) -> str:
    from clipgen_core.stages import transformer

    tokens = tokens or out.current("tokens", "training the transformer").path
    result = transformer.run(recipe.transformer, tokens=tokens, out=out, tracker=tracker, texts=texts)
    return result.checkpoint


def _tracker(run_id: str | None) -> "AbstractContextManager[Tracker]":
    from clipgen_core.mlflow_tracker import MlflowTracker
    from clipgen_core.tracking import NullTracker, default_uri, unasked_client

    return MlflowTracker(unasked_client(default_uri()), run_id) if run_id else nullcontext(NullTracker())
