"""What still holds images that are forgotten: tagged versions of tables, token shards, reports, models.

Upkeep removes forgotten rows from disk with the old versions of a table. Versions that token shards or a
training were made from are tagged and stay, and shards and reports are files of their own.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipgen_core import filesystem
from clipgen_core.data.files import AT_ONCE
from clipgen_core.data.sources import in_lists
from clipgen_core.data.tables import find_table, one_of
from clipgen_core.data.upkeep import remove_tags, tables, tags_of
from clipgen_core.errors import ClipgenError
from clipgen_core.registry.unused import remove_artefact
from clipgen_core.storage import Storage, located, portable, root_of
from clipgen_core.tracking import why


@dataclass(frozen=True)
class Kept:
    """What holds some images.

    Attributes:
        tags: Tags of versions that have them, by the table's URL.
        folders: Token shards and reports that have them, by their names under the root.
    """

    tags: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """What it is, for people."""
        named = [f"the tag {tag} of {url}" for url, tags in self.tags.items() for tag in tags]
        return [*named, *self.folders]


def find(out: Storage, ids: Collection[str]) -> Kept:
    """Look for what holds images.

    Args:
        out: The root.
        ids: Of the images.

    Returns:
        What holds at least one of them, other than the newest versions of tables.
    """
    tags = {url: tuple(_tags_with(url, ids)) for url in tables(out)}
    shards = _folders(out, "tokens", lambda url: _shards_hold(url, ids))
    reports = _folders(out, "reports", lambda url: _report_names(url, ids))
    return Kept({url: some for url, some in tags.items() if some}, (*shards, *reports))


def let_go(out: Storage, found: Kept) -> None:
    """Remove tags, token shards and reports; upkeep then removes the versions, and shards are written again.

    Called again after a kill, with what `find` finds then, it removes the rest.

    Args:
        out: The root.
        found: What `find` found.
    """
    for folder in found.folders:
        remove_artefact(out.path(*folder.split("/")))
    for url, tags in found.tags.items():
        remove_tags(url, set(tags).__contains__)


def models(out: Storage, client: Any, ids: Collection[str]) -> dict[str, bool]:
    """The registered versions that were trained on images.

    Args:
        out: The root that they were trained under.
        client: MLflow's client.
        ids: Of the images.

    Returns:
        `NAME version N`: True if it was trained on at least one of them; False if the version of the
        embeddings that says so is gone.

    Raises:
        ClipgenError: MLflow does not say which versions there are.
    """
    try:
        versions = client.search_model_versions("")
    except Exception as error:
        raise ClipgenError(f"MLflow does not say which models are registered ({why(error)})") from error
    saw = {f"{one.name} version {one.version}": _saw(out, one.tags, ids) for one in versions}
    return {name: bool(known) for name, known in sorted(saw.items()) if known is not False}


def _saw(out: Storage, tags: Mapping[str, str], ids: Collection[str]) -> bool | None:
    """Whether a version was trained on images; None if that cannot be told."""
    root = root_of(tags.get("transformer", ""))
    here = located(portable(dict(tags), root), out.root)
    if root != out.root and not filesystem.exists(here.get("transformer", "")):
        return False  # of another root
    url, version = here.get("embeddings", ""), here.get("embeddings_version", "")
    return _holds(url, int(version), ids) if url and version.isdigit() else None


def _tags_with(url: str, ids: Collection[str]) -> Iterator[str]:
    named = tags_of(url) if find_table(url) is not None else {}
    holding = {version for version in set(named.values()) if _holds(url, version, ids)}
    yield from sorted(name for name, version in named.items() if version in holding)


def _holds(url: str, version: int, ids: Collection[str]) -> bool | None:
    """Whether a version of a table has rows of images; None if there is no such version."""
    table = find_table(url, version)
    if table is None:
        return None
    columns = [name for name in ("id", "nearest") if name in table.schema.names]
    lists = in_lists(sorted(ids), AT_ONCE)
    return any(table.count_rows(filter=one_of(name, some)) for some in lists for name in columns)


def _folders(out: Storage, kind: str, holds: Callable[[str], bool]) -> list[str]:
    names = sorted(filesystem.list_folder(out.path(kind)))
    return [f"{kind}/{name}" for name in names if holds(out.path(kind, name))]


def _shards_hold(url: str, ids: Collection[str]) -> bool:
    named = pa.array(sorted(ids), pa.string())
    for file in filesystem.list_folder(url):
        if file.endswith(".parquet"):
            ids_of_file = filesystem.retried(_ids_of_file, f"{url}/{file}")
            if pc.any(pc.is_in(ids_of_file, named)).as_py():
                return True
    return False


def _ids_of_file(url: str) -> pa.ChunkedArray:
    """The ids in a Parquet file of token shards; the rest of it, which is larger, is not read."""
    store, path = filesystem.url_to_fs(url)
    with store.open(path, "rb") as opened:
        return pq.read_table(opened, columns=["id"])["id"]


def _report_names(url: str, ids: Collection[str]) -> bool:
    """Whether a report names an image as the one nearest to a generated one."""
    file = f"{url}/prompts.json"
    rows = json.loads(filesystem.read_bytes(file)) if filesystem.exists(file) else []
    nearest = {(row.get("nearest_training_picture") or {}).get("id") for row in rows}
    return not nearest.isdisjoint(ids)
