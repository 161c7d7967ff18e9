"""Read files of prompts: text, CSV and COCO. Knows their formats, but not their use."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from clipgen_core import filesystem
from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.settings.sampling import MAX_PROMPT_LENGTH

NAMES = "names:"  # before a folder: the names of its image files are the prompts
SEPARATOR = re.compile(r"\Asep=.(?=\r?\n)")  # Excel's first line; its line end stays, so that lines count
DELIMITERS = (",", ";", "\t")  # Excel writes a semicolon where the comma is the decimal separator


@dataclass(frozen=True)
class Prompt:
    """A prompt, the split that it belongs to, and the URL of an image of it if the file names one; or that of
    an images table, and the id of the image in it."""

    text: str
    split: str
    file: str | None
    image: str | None = None


def read_prompts(url: str, images: str | None = None) -> list[Prompt]:
    """Read the prompts of a file.

    The file's ending decides the format. A `.csv` or `.tsv` file has the column `prompt`, and may have
    `split` and `file`; of a captions file, the captions that are not too long are prompts. A `.json` file
    holds COCO captions: `annotations` with `caption` and `image_id`, and `images` with `id` and `file_name`.
    Of an images table (`.lance`), the first captions of its held-out images are prompts, as far as they are
    not too long. `names:FOLDER` stands for what the names of the image files in a folder say
    (data/filenames.py). Any other file has one prompt a line.

    Args:
        url: The file.
        images: The folder that image files are relative to; by default the folder of a CSV file. Without it,
            prompts of COCO captions have no image.

    Returns:
        The prompts in the file's order; empty ones are left out.

    Raises:
        ClipgenError: The file does not exist, has another format or holds no prompt.
    """
    if url.startswith(NAMES):
        return _of_names(url.removeprefix(NAMES))
    ending = url.rpartition(".")[2].lower()
    if ending == "lance":
        return _of_table(url)
    read = {"csv": _csv_prompts, "tsv": _csv_prompts, "json": _coco_prompts}.get(ending, _plain_prompts)
    folder = images or (folder_of(url) if read is _csv_prompts else None)
    prompts = [
        Prompt(text, split, filesystem.inside(folder, relative(folder, file)) if file and folder else None)
        for text, split, file in read(url)
        if text.strip()
    ]
    if not prompts:
        raise ClipgenError(f"prompts file {url} holds no prompt: add some")
    return prompts


def _of_table(url: str) -> list[Prompt]:
    from clipgen_core.data.captioned import held_out_captions

    read = [Prompt(text, "held out", url, image_id) for image_id, text in held_out_captions(url)]
    prompts = [prompt for prompt in read if len(prompt.text) <= MAX_PROMPT_LENGTH]
    if not prompts:
        raise ClipgenError(f"no held-out image of {url} has a caption: name a prompts file")
    return prompts


def _of_names(folder: str) -> list[Prompt]:
    from clipgen_core.data.filenames import captions_of_names

    first = {text: file for file, text in reversed(captions_of_names(folder).items())}
    return [Prompt(text, "all", filesystem.inside(folder, file)) for text, file in sorted(first.items())]


def by_split(prompts: Iterable[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of each split, each text once, in the order in which the splits first occur."""
    splits: dict[str, dict[str, Prompt]] = {}
    for prompt in prompts:
        splits.setdefault(prompt.split, {})[prompt.text] = prompt
    return {split: list(once.values()) for split, once in splits.items()}


def require_scorable(url: str, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that cannot be scored, before images are generated for them.

    Args:
        url: The file that they are from.
        prompts: All of its prompts.

    Raises:
        ClipgenError: A prompt is too long, a split has a single one, which allows no distance, or an image
            does not exist.
    """
    longest = max(len(prompt.text) for prompt in prompts)
    if longest > MAX_PROMPT_LENGTH:
        raise ClipgenError(
            f"a prompt of {url} has {longest} characters: at most {MAX_PROMPT_LENGTH} are allowed"
        )
    for split, own in by_split(prompts).items():
        if len(own) < 2:
            raise ClipgenError(
                f"the split {split!r} of prompts file {url} has one prompt: at least 2 are needed"
            )
    files = [prompt.file for prompt in prompts if prompt.file and not prompt.image]
    require_files(f"prompts file {url}", files)


def require_files(named_by: str, urls: Sequence[str]) -> None:
    """Check that files exist before hours of work depend on them; each of their folders is listed once.

    Args:
        named_by: What names the files, for the error message.
        urls: The files.

    Raises:
        ClipgenError: One does not exist.
    """
    folders = {url.rpartition("/")[0] for url in urls}
    existing = {f"{folder}/{name}" for folder in folders for name in filesystem.list_folder(folder)}
    missing = [url for url in urls if url not in existing]
    if missing:
        raise ClipgenError(
            f"{len(missing)} of {len(urls)} files that {named_by} names do not exist, the first is "
            f"{missing[0]}: check the names and their folder"
        )


def _csv_prompts(url: str) -> Iterator[tuple[str, str, str | None]]:
    text = SEPARATOR.sub("", _read(url, "prompts"))
    captions = _delimiter(text, ("prompt",)) is None and _delimiter(text, ("file", "caption")) is not None
    column = "caption" if captions else "prompt"
    for _, row in read_rows(url, "prompts", (column,)):
        if not captions or len(row[column]) <= MAX_PROMPT_LENGTH:
            yield row[column], row.get("split") or "all", row.get("file")


def _coco_prompts(url: str) -> Iterator[tuple[str, str, str | None]]:
    try:
        read = json.loads(_read(url, "prompts"))
        files = {image["id"]: image["file_name"] for image in read["images"]}
        rows = [(note["caption"].strip(), "all", files[note["image_id"]]) for note in read["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ClipgenError(
            f"prompts file {url} is no COCO captions file ({type(error).__name__}: {error}): it needs "
            "images with id and file_name, and annotations with image_id and caption"
        ) from error
    yield from rows


def _plain_prompts(url: str) -> Iterator[tuple[str, str, str | None]]:
    for line in _read(url, "prompts").splitlines():
        yield line.strip(), "all", None


def folder_of(url: str) -> str:
    """The folder that a file is in, to which the files that it names are relative; that of `names:FOLDER`."""
    if url.startswith(NAMES):
        return url.removeprefix(NAMES)
    return url.rpartition("/")[0] or "."


def relative(folder: str, file: str) -> str:
    """A file name relative to a folder.

    Args:
        folder: A local path or a URL.
        file: A name relative to the folder, or the whole path or URL of a file in it.

    Returns:
        The name relative to the folder. A file that is elsewhere keeps its whole name, which
        `filesystem.inside` refuses.
    """
    if not (file.startswith("/") or "://" in file):
        return file
    for start in (folder, filesystem.url_to_fs(folder)[1]):
        if file.startswith(f"{start.rstrip('/')}/"):
            return file[len(start.rstrip("/")) :].lstrip("/")
    return file


def read_texts(url: str) -> list[str]:
    """Texts that resemble the expected prompts, from a file with one a line."""
    lines = [line.strip() for line in _read(url, "texts").splitlines() if line.strip()]
    if len(lines) < 2:
        raise ClipgenError(f"texts file {url} holds {len(lines)} texts: at least 2 are needed")
    return lines


def read_rows(url: str, what: str, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file whose fields are separated by commas, semicolons or tabs.

    The names of columns may be in capital letters. Excel's first line `sep=;` is passed over.

    Args:
        url: The file.
        what: What the file holds, for error messages.
        columns: Columns that it must have.

    Yields:
        The number of a row's last line in the file, and the row, as column name to text. Columns that a short
        row lacks are not in it.

    Raises:
        ClipgenError: The file does not exist or lacks a column, or a row has other columns than the header.
    """
    text = SEPARATOR.sub("", _read(url, what))
    delimiter = _delimiter(text, columns)
    if delimiter is None:
        named = " and ".join(columns)
        raise ClipgenError(
            f"{what} file {url} needs the column{'s' * (len(columns) > 1)} {named}: add a header"
        )
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = _names(next(filter(None, rows)))
        if twice := {name for name in columns if header.count(name) > 1}:
            raise ClipgenError(f"{what} file {url} has the column {twice.pop()} twice: remove one")
        for row in rows:
            fields = dict(zip(header, row, strict=False))
            if not any(row):
                continue  # an empty line, or one of delimiters only, as Excel writes them
            if any(row[len(header) :]) or not set(columns) <= fields.keys():
                raise ClipgenError(
                    f"{what} file {url} has {len(row)} fields in line {rows.line_num}, and {len(header)} in "
                    f"its header: put quotes around texts that hold a {delimiter!r}, or add what is missing"
                )
            yield rows.line_num, fields
    except csv.Error as error:
        raise ClipgenError(
            f"{what} file {url} cannot be read from line {rows.line_num} on ({first_line(error)}): "
            "repair the quotes there"
        ) from error


def _delimiter(text: str, columns: tuple[str, ...]) -> str | None:
    """The delimiter by which the header has the columns; None if none does."""
    for delimiter in DELIMITERS:
        header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
        if set(columns) <= set(_names(header)):
            return delimiter
    return None


def _names(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _read(url: str, what: str) -> str:
    """A file's text, in UTF-8 or in UTF-16 with a byte order mark."""
    if not filesystem.exists(url):
        raise ClipgenError(f"{what} file {url} does not exist: check the path")
    store, path = filesystem.url_to_fs(url)
    if store.isdir(path):
        raise ClipgenError(f"{what} file {url} is a folder: name a file in it")
    try:
        data = filesystem.read_bytes(url)
    except PermissionError as error:
        raise ClipgenError(f"{what} file {url} may not be read: change its permissions") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ClipgenError(
            f"{what} file {url} is not encoded in UTF-8 (line {line}): save it as UTF-8, "
            'which Excel calls "CSV UTF-8"'
        ) from error
