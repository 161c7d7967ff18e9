"""CSV files with prompts or captions. Knows columns, not what they are for."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from clipgen_core import storage
from clipgen_core.errors import ClipgenError


@dataclass(frozen=True)
class Prompt:
    """A text, the split it belongs to, and the URL of a picture of it where one is known."""

    text: str
    split: str
    file: str | None


def read_prompts(url: str) -> list[Prompt]:
    """Prompts of a CSV with the column `prompt`; `split` and `file` are optional."""
    folder = url.rpartition("/")[0] or "."
    prompts = [
        Prompt(
            text=row["prompt"],
            split=row.get("split") or "all",
            file=storage.inside(folder, row["file"]) if row.get("file") else None,
        )
        for row in read_rows(url, "prompts", ("prompt",))
        if row["prompt"].strip()
    ]
    if not prompts:
        raise ClipgenError(f"prompts file {url} holds no prompt: add some")
    return prompts


def read_captions(url: str) -> dict[str, list[str]]:
    """Captions of each file of a CSV with the columns `file` and `caption`."""
    pairs: dict[str, list[str]] = {}
    for row in read_rows(url, "captions", ("file", "caption")):
        pairs.setdefault(row["file"], []).append(row["caption"])
    if len(pairs) < 2:
        raise ClipgenError(f"captions file {url} names {len(pairs)} pictures: at least 2 are needed")
    return pairs


def read_texts(url: str) -> list[str]:
    """Texts of the kind that prompts will be, one a line."""
    lines = [line.strip() for line in _read(url, "texts").splitlines() if line.strip()]
    if len(lines) < 2:
        raise ClipgenError(f"texts file {url} holds {len(lines)} texts: at least 2 are needed")
    return lines


def read_rows(url: str, what: str, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """The rows of a CSV that must have these columns."""
    rows = csv.DictReader(io.StringIO(_read(url, what)))
    if not set(columns) <= set(rows.fieldnames or ()):
        named = " and ".join(columns)
        raise ClipgenError(
            f"{what} file {url} needs the column{'s' * (len(columns) > 1)} {named}: add a header"
        )
    yield from rows


def _read(url: str, what: str) -> str:
    if not storage.exists(url):
        raise ClipgenError(f"{what} file {url} does not exist: check the path")
    return storage.read_bytes(url).decode("utf-8")
