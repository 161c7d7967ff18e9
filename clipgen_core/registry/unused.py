"""What is left of a root that nothing needs any more: neither the newest artefacts nor a registered model.

Knows how the records of artefacts name other artefacts; knows nothing of what is in them. An artefact is kept
if one that is kept names it, so a mistake keeps too much rather than too little.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clipgen_core import filesystem
from clipgen_core.data.tables import find_table
from clipgen_core.data.tokens import MANIFEST
from clipgen_core.data.upkeep import remove_tags, tables
from clipgen_core.errors import ClipgenError
from clipgen_core.registry.champions import Registry
from clipgen_core.schema import codes_fingerprint
from clipgen_core.storage import Storage
from clipgen_core.tracking import why
from clipgen_core.training.checkpoint import PROVENANCE

KINDS = ("checkpoints", "tokens", "codes", "embeddings", "duplicates", "reports", "clips", "imported")
ADDRESS = re.compile(rf"(?:checkpoints/[\w.-]+|{'|'.join(KINDS[1:])})/[\w.=+,@-]+")
VERSIONS = "_versions"  # the folder of a table without which it is none
MARKERS = ("state.json", MANIFEST, PROVENANCE, "open_clip_config.json", "metrics.json")


@dataclass(frozen=True)
class Artefact:
    """One artefact of a root.

    Attributes:
        name: Its address under the root.
        size: In bytes.
        changed: When its newest file was written.
    """

    name: str
    size: int
    changed: datetime.datetime

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def unused(out: Storage, client: Any, keep: datetime.timedelta) -> list[Artefact]:
    """The artefacts that can be removed.

    Kept are the newest artefact of each stage, those that the tags of a version name in any registered model,
    what was written within `keep`, and everything that these were made from.

    Args:
        out: The root.
        client: MLflow's client, of the registry that has the root's models; None if none was registered.
        keep: Age from which artefacts are removed.

    Returns:
        The rest, in the order of their names.

    Raises:
        ClipgenError: The registry lacks a version that was champion, so it may be another one.
    """
    named = " ".join([*_pointers(out), *(_registered(out, client) if client else [])])
    oldest = datetime.datetime.now(datetime.UTC) - keep
    every = {one.name: one for one in artefacts(out)}
    waiting = set(ADDRESS.findall(named)) | {name for name, one in every.items() if one.changed > oldest}
    kept = set[str]()
    while waiting:
        name = waiting.pop()
        kept.add(name)
        if name in every:
            waiting |= set(_needs(out, name)) - kept
    return [one for name, one in sorted(every.items()) if name not in kept]


def artefacts(out: Storage) -> Iterator[Artefact]:
    """All artefacts of a root that are not the images and what belongs to them."""
    store, root = filesystem.url_to_fs(out.root)
    store.invalidate_cache()
    for kind in KINDS:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for path, entry in filesystem.retried(store.find, f"{root}/{kind}", detail=True).items():
            address = ADDRESS.match(path.removeprefix(root).lstrip("/"))
            if address:
                found.setdefault(address[0], []).append(entry)
        for name, entries in found.items():
            changed = max(map(_changed, entries))
            yield Artefact(name, sum(int(entry["size"] or 0) for entry in entries), changed)


def remove(out: Storage, gone: list[Artefact]) -> None:
    """Remove artefacts, and the tags that keep versions of tables for them.

    No reader takes what is left for whole, if this is killed; called again, it removes the rest.

    Args:
        out: The root.
        gone: What `unused` found.
    """
    for one in gone:
        remove_artefact(f"{out.root.rstrip('/')}/{one.name}")
    there = {one.name for one in artefacts(out)}
    runs = {name.rpartition("/")[2] for name in there if name.startswith("checkpoints/transformer/")}
    shards = {name.rpartition("-")[2] for name in there if name.startswith("tokens/")}
    needed = {f"transformer-{run}" for run in runs} | {f"tokens-{fingerprint}" for fingerprint in shards}
    for url in tables(out):
        remove_tags(url, lambda tag: tag.startswith(("transformer-", "tokens-")) and tag not in needed)


def remove_artefact(url: str) -> None:
    """Remove the folder of an artefact, first the files without which no reader takes it for whole."""
    store, path = filesystem.url_to_fs(url)
    if filesystem.is_local(url):
        return filesystem.remove_folder(url, marker="")
    for file in filesystem.retried(store.find, path):
        if file.endswith(MARKERS) or f"/{VERSIONS}/" in file:
            filesystem.retried(store.rm_file, file)
    filesystem.retried(store.rm, path, recursive=True)


def _changed(entry: Mapping[str, Any]) -> datetime.datetime:
    """When a file was written; the present where the store does not say."""
    written = next(filter(None, map(entry.get, ("mtime", "LastModified", "updated"))), None)
    if isinstance(written, int | float):
        return datetime.datetime.fromtimestamp(written, datetime.UTC)
    return written if isinstance(written, datetime.datetime) else datetime.datetime.now(datetime.UTC)


def _pointers(out: Storage) -> Iterator[str]:
    for name in filesystem.list_folder(out.path("current")):
        yield filesystem.read_bytes(out.path("current", name)).decode()


def _registered(out: Storage, client: Any) -> list[str]:
    """The tags of all registered versions."""
    try:
        versions = client.search_model_versions("")
    except Exception as error:
        raise ClipgenError(f"MLflow does not say which models are registered ({why(error)})") from error
    for file in filesystem.list_folder(out.path("champions")):
        Registry(client, out, file.removesuffix(".lance")).require_all()
    return [json.dumps(_without_start(version.tags)) for version in versions]


def _needs(out: Storage, name: str) -> list[str]:
    """Names of the artefacts that an artefact was made from, as its records name them."""
    url, kind = f"{out.root.rstrip('/')}/{name}", name.partition("/")[0]
    if kind in ("embeddings", "codes", "duplicates"):
        table = find_table(url)
        text = repr(table.schema.metadata) if table else ""
        beside = [f"duplicates/{name.partition('/')[2]}"] if kind == "embeddings" else []
        return [*ADDRESS.findall(text), *beside]
    records = [url, *(f"{url}/{step}" for step in filesystem.list_folder(url) if kind == "checkpoints")]
    files = [f"{record}/{file}" for record in records for file in (MANIFEST, PROVENANCE)]
    found = [json.loads(filesystem.read_bytes(file)) for file in files if filesystem.exists(file)]
    named = " ".join(json.dumps(_without_start(record)) for record in found)
    return [*ADDRESS.findall(named), *map(_codes, filter(_is_manifest, found))]


def _without_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the weights that a training started from: they are not needed once it has its own,
    and each names those before."""
    return {
        key: _without_start(value) if isinstance(value, dict) else value
        for key, value in record.items()
        if key not in ("start_from", "started_from", "configuration")
    }


def _is_manifest(record: Mapping[str, Any]) -> bool:
    return {"vqgan_digest", "views", "smallest_crop"} <= record.keys()


def _codes(manifest: Mapping[str, Any]) -> str:
    """The table of codes from which token shards were written."""
    named = (manifest["vqgan_digest"], manifest["views"], manifest["smallest_crop"])
    return f"codes/{codes_fingerprint(*named)}.lance"
