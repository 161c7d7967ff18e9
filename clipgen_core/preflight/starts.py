"""Checks of the weights that trainings start from: `start_from` of each stage, and an imported VQGAN.

Nothing is downloaded and no weights are read: the records of checkpoints say what they are.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipgen_core.assets import ASSETS
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import exists
from clipgen_core.preflight.begun import begun
from clipgen_core.preflight.doubt import Doubt
from clipgen_core.preflight.services import little_patience
from clipgen_core.run_config import Run
from clipgen_core.schema import TokenManifest
from clipgen_core.storage import Storage
from clipgen_core.tracking import describe
from clipgen_core.training import runs
from clipgen_core.training.checkpoint import WEIGHTS, Checkpoint

if TYPE_CHECKING:
    from clipgen_core.generation.load import Inputs

REGISTERED = "models:/"


def clip(run: Run) -> str:
    """Whether the weights fit that the CLIP starts from."""
    from clipgen_core.generation.load import clip_to_start_from

    return _start(run, "clip_checkpoint", "CLIP", lambda url: clip_to_start_from(url, run.recipe.clip))


def vqgan(run: Run) -> str:
    """Whether the weights fit that the VQGAN starts from."""
    from clipgen_core.generation.load import vqgan_to_start_from

    model = run.recipe.vqgan.model
    return _start(run, "vqgan_checkpoint", "VQGAN", lambda url: vqgan_to_start_from(url, model))


def transformer(run: Run) -> str:
    """Whether the weights fit that the transformer starts from, and their VQGAN and CLIP if these stay."""
    from clipgen_core.generation.load import transformer_to_start_from

    def source(url: str) -> Checkpoint:
        return transformer_to_start_from(url, run.recipe.transformer.model, _shards(run))

    return _start(run, "transformer_checkpoint", "transformer", source)


def _shards(run: Run) -> "TokenManifest | Inputs":
    """The token shards that the transformer will be trained on, as far as the run does not change them."""
    from clipgen_core.data.tables import open_table
    from clipgen_core.data.tokens import read_manifest
    from clipgen_core.generation.load import Inputs

    out, vqgan = Storage(run.root), run.recipe.vqgan.model
    if "token_shards" not in run.assets:
        return read_manifest(out.current("tokens", "transformer_checkpoint").path)
    known: dict[str, Any] = {}
    if "vqgan_checkpoint" in run.assets - run.unclear:
        known |= {"grid": vqgan.grid, "codebook_size": vqgan.quantizer.codebook_size}
    elif exists(out.path("current", "vqgan.json")):
        url = out.current("vqgan", "token_shards").path
        known |= {"vqgan": url, "vqgan_digest": Checkpoint(url).provenance.digest}
    if "clip_embeddings" not in run.assets and exists(out.path("current", "embeddings.json")):
        table = open_table(out.current("embeddings", "token_shards").path)
        known["clip_key"] = table.schema.metadata[b"clip_key"].decode()
    return Inputs(**known)


def _start(run: Run, asset: str, label: str, source: Callable[[str], Checkpoint]) -> str:
    """Whether the address that `start_from` gives is that of weights which fit; "" if there is none."""
    stage = ASSETS[asset].stage
    address = getattr(run.recipe, stage).start_from
    if not address:
        return ""
    setting = f"{stage}.start_from"
    if asset in run.unclear:
        raise Doubt(f"{setting} is not checked: correct the config of {asset} first")
    registered = address.startswith(REGISTERED) and label != "CLIP"
    try:
        if registered:
            with little_patience():
                return f"{setting} is {address}, version {describe(address)['version']}"
        if address == runs.LATEST:
            out = Storage(run.root)
            address = runs.latest(runs.runs(out, stage), label, out)
        found = source(address).url
        if not exists(f"{found}/{WEIGHTS}"):
            raise ClipgenError(f"{found} has no {WEIGHTS}: restore it, or give another checkpoint")
    except ClipgenError as error:
        said = str(error) if registered else f"{setting}: {error}"  # MLflow's own check may say the same
        if begun(run, asset):
            raise Doubt(f"{said}; this does not matter if the training goes on") from error
        raise ClipgenError(said) from error
    return f"{setting} is {found}"


def imported(run: Run) -> str:
    """Whether an imported VQGAN would be replaced by a new one that is trained from scratch."""
    out = Storage(run.root)
    if run.recipe.vqgan.start_from or not exists(out.path("current", "vqgan.json")):
        return ""
    try:
        source = Checkpoint(out.current("vqgan", "this check").path).provenance.imported
    except ClipgenError:  # a damaged one is nothing to keep
        return ""
    if not source:
        return ""
    raise Doubt(
        f"the VQGAN of {out.root} is imported ({source.file}), and a new one that is "
        "trained from scratch would replace it: to keep it, materialise the other assets without "
        "vqgan_checkpoint; to fine-tune it, set vqgan.start_from to latest"
    )
