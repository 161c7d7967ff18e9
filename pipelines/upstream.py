"""Which artefact an asset works on: the one that its own run materialised, else the latest under the root.

Knows which asset produces which artefact, and the metadata by which each is found again; knows nothing of
what the artefacts hold.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from clipgen_core.storage import Pointer, Storage

PRODUCERS = {
    "clip": "clip_checkpoint",
    "embeddings": "clip_embeddings",
    "vqgan": "vqgan_checkpoint",
    "tokens": "token_shards",
    "transformer": "transformer_checkpoint",
}
PATH, DIGEST, ROOT = "path", "digest", "root"  # metadata of every asset that leaves an artefact


def artefact(out: Storage, path: str, digest: str) -> dict[str, Any]:
    """Metadata by which downstream assets of the same run find an artefact.

    Args:
        out: The root under which the artefact lives.
        path: Where it is: a path, an fsspec URL, or the reference of a CLIP.
        digest: The digest of what it was made from.

    Returns:
        Metadata of a materialisation.
    """
    return {PATH: dg.MetadataValue.path(path), DIGEST: digest, ROOT: out.root, "dagster/uri": path}


def upstream(context: dg.AssetExecutionContext, out: Storage, stage: str) -> Pointer:
    """The artefact of `stage` that this run works on.

    It is the one that this run materialised, or else a run that this one re-executes. Where none of them did,
    the pointer under the root is taken: what was finished last, by Dagster, the command line or an import.

    Args:
        context: The context of the asset that needs the artefact.
        out: The root; a materialisation under another root is never taken.
        stage: A key of PRODUCERS.

    Returns:
        Its path and digest.

    Raises:
        ClipgenError: The stage was never finished under this root.
    """
    for run_id in _run_and_those_it_re_executes(context):
        pointer = _materialised(context.instance, run_id, out, PRODUCERS[stage])
        if pointer:
            return pointer
    return out.current(stage, context.asset_key.to_user_string())


def _run_and_those_it_re_executes(context: dg.AssetExecutionContext) -> Iterator[str]:
    """Run ids, from this run back to the root run."""
    run: dg.DagsterRun | None = context.run
    while run:
        yield run.run_id
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None


def _materialised(instance: dg.DagsterInstance, run_id: str, out: Storage, asset: str) -> Pointer | None:
    """What the run's last materialisation of the asset under this root says."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    for event in reversed(events):
        made = event.asset_materialization
        if made and made.asset_key == dg.AssetKey(asset):
            values = {name: value.value for name, value in made.metadata.items()}
            if values.get(ROOT) == out.root:
                return Pointer(path=str(values[PATH]), digest=str(values[DIGEST]))
    return None
