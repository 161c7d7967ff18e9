"""The training images of a model, for visitors of the page: search, filter, near-duplicates and rejects.

Knows the tables of a root; knows nothing of generation. Of files it shows the names, not the folders.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from clipgen_core.data.images import shown_by_id
from clipgen_core.data.overview import rejects
from clipgen_core.data.selection import require_condition
from clipgen_core.data.tables import find_table, one_of
from clipgen_core.errors import ClipgenError
from clipgen_core.generation.generator import TextToImage
from clipgen_core.serving.models import Models, Served
from clipgen_core.serving.pictures import group, training_picture
from clipgen_core.storage import Storage

if TYPE_CHECKING:
    import lance

SHOWN, PAIRS, REJECTS = 48, 24, 200
FILTERED = 2000  # nearest images among which a filter chooses
SIMILAR = 0.9  # the smallest cosine of a pair
TABLE = "/images.lance"
Found = tuple[list[dict[str, Any]], str]  # groups of pictures, and what is said of them


@dataclass(frozen=True)
class Root:
    """The tables of the root that a model was trained under.

    Attributes:
        table: The images table.
        storage: The root.
        clip_key: Names the CLIP.
    """

    table: "lance.LanceDataset"
    storage: Storage
    clip_key: str


def root_behind(offered: Models, model: Served) -> Root | None:
    """The root that a model was trained under.

    Args:
        offered: The models of the page.
        model: One of them.

    Returns:
        The root; None if its images table is not available.
    """
    images = offered.images(model)
    table = find_table(images) if images.endswith(TABLE) else None
    clip_key = offered.load(model).parts.clip_key
    return table and Root(table, Storage(images.removesuffix(TABLE)), clip_key)


class Browse:
    """What the buttons of the tab for training images do.

    Args:
        offered: The models.
    """

    def __init__(self, offered: Models) -> None:
        self._offered = offered

    def search(self, query: str, where: str, model: str) -> Found:
        """Show the training images nearest to a text, or the first ones, of those that a filter selects.

        Args:
            query: The text; empty for any.
            where: A condition in SQL on the columns of the images table; empty for all.
            model: The name of a model.

        Returns:
            The images, and how many there are.
        """
        with _said():
            generator, root = self._opened(model)
            if where:
                require_condition(root.table.schema, where, "the filter")
            if not query.strip():
                first = root.table.to_table(columns=["id"], filter=where or None, limit=SHOWN)
                ids = dict.fromkeys(first["id"].to_pylist(), "")
                count = root.table.count_rows(filter=where or None)
                return _shown(root, ids), f"{len(ids)} of {count:,} training images."
            if generator.embeddings is None:
                raise ClipgenError("this model has no embeddings to search in: leave the text empty.")
            found = dict(generator.search(query, FILTERED if where else SHOWN))
            if where:
                chosen = f"({where}) AND {one_of('id', list(found))}"
                left = set(root.table.to_table(columns=["id"], filter=chosen)["id"].to_pylist())
                found = {one: cosine for one, cosine in found.items() if one in left}
            nearest = {one: f"{cosine:.3f} " for one, cosine in itertools.islice(found.items(), SHOWN)}
            return _shown(root, nearest), f"{len(nearest)} training images, the nearest to the text first."

    def duplicates(self, model: str) -> Found:
        """Show the most similar pairs of training images.

        Args:
            model: The name of a model.

        Returns:
            The pairs, the most similar first, and how many are shown.
        """
        with _said():
            _, root = self._opened(model)
            table = find_table(root.storage.duplicates(root.clip_key))
            if table is None:
                raise ClipgenError("near-duplicates were not looked for: materialise near_duplicates first.")
            similar = table.to_table(columns=["id", "nearest", "cosine"], filter=f"cosine >= {SIMILAR}")
            rows = similar.sort_by([("cosine", "descending")])
            pairs = dict[frozenset[str], float]()
            for row in rows.slice(0, 2 * PAIRS).to_pylist():
                pairs.setdefault(frozenset([row["id"], row["nearest"]]), row["cosine"])
            ids = {one: f"{cosine:.3f} " for pair, cosine in pairs.items() for one in sorted(pair)}
            return _shown(root, ids), f"The {len(pairs)} most similar pairs of training images."

    def rejects(self, model: str) -> dict[str, Any]:
        """List the files that could not be used."""
        with _said():
            _, root = self._opened(model)
            rows = itertools.islice(rejects(root.storage), REJECTS)
            files = [{"file": _name(one["uri"]), "why": f"{one['reason']}: {one['detail']}"} for one in rows]
        count = f"the first {REJECTS}" if len(files) == REJECTS else len(files) or "none"
        return {"said": f"Rejected files: {count}.", "files": files}

    def _opened(self, model: str) -> tuple[TextToImage, Root]:
        served = self._offered.find(model)
        generator, root = self._offered.load(served), root_behind(self._offered, served)
        if root is None:
            raise ClipgenError(
                "the training images of this model are not available here: choose another one."
            )
        return generator, root


@contextmanager
def _said() -> Iterator[None]:
    """Within the `with`, an error for the visitor is shown as Gradio shows errors."""
    try:
        yield
    except ClipgenError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _shown(root: Root, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Pictures of the training images with some ids, each with its note and its file's name."""
    images = shown_by_id(root.table, notes)
    rows = root.table.to_table(columns=["id", "uri"], filter=one_of("id", list(images))).to_pylist()
    names = {row["id"]: _name(row["uri"]) for row in rows}
    shown = [
        training_picture(images[one], f"training image {names[one]}", f"{note}{names[one]}")
        for one, note in notes.items()
        if one in images
    ]
    return [group(shown)] if shown else []


def _name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
