"""Where artefacts live: paths under one root, and a pointer to each stage's latest artefact.

The root is a local folder or any fsspec URL. A root can be moved: in records, such as manifests, addresses
under it are stored relative to it. Knows nothing of what the artefacts hold.
"""

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.filesystem import exists, read_bytes, url_to_fs, write_bytes
from clipgen_core.schema import LOCAL, Frozen

DEFAULT_ROOT = ".clipgen/default"
SAFE_PART = re.compile(r"[\w.@=+,-]+")
HERE = "{root}"  # in a stored record: the root under which the record lies
WITH_RECORDS = re.compile(  # the artefacts of a root whose records name others
    r"(.*)/(?:checkpoints/[^/]+/[^/]+(?:/step-\d+)?|(?:tokens|embeddings|imported)/[^/]+)"
)

Record = TypeVar("Record")

ASSETS = {  # stage: the Dagster asset that holds its artefact, and a command that makes it
    "clip": ("clip_checkpoint", "clipgen train-stage clip"),
    "embeddings": ("clip_embeddings", "clipgen embed FOLDER"),
    "vqgan": ("vqgan_checkpoint", "clipgen train-stage vqgan"),
    "images": ("raw_images", "clipgen embed FOLDER"),
    "tokens": ("token_shards", "clipgen tokens"),
    "transformer": ("transformer_checkpoint", "clipgen train-stage transformer"),
    "evaluation": ("evaluation_report", "clipgen evaluate"),
}


def remedy(stage: str, when: str = "again") -> str:
    """How to write the artefact of a stage, in words for Dagster and for the command line.

    Args:
        stage: A key of ASSETS.
        when: Ends both ways: `again` or `first`.

    Returns:
        The end of a sentence.
    """
    asset, command = ASSETS[stage]
    return f"materialise {asset} {when} in Dagster, or run `{command}` {when}"


class Pointer(Frozen):
    """The latest finished artefact of a stage.

    `path` is in full, also in the file, for scripts that read it. `root` is the root under which the file was
    written; earlier versions did not store it.
    """

    path: str
    digest: str
    root: str | None = None


class Storage:
    """The artefacts of one pipeline.

    Args:
        root: A local folder or an fsspec URL, such as `s3://bucket/folder`.

    Raises:
        ClipgenError: There is no such kind of URL, or the package for it is not installed.
    """

    def __init__(self, root: str = DEFAULT_ROOT) -> None:
        if "://" in root:
            url_to_fs(root)
        self.root = _full(root)

    def path(self, *parts: str) -> str:
        """`{root}/a/b/c`.

        Raises:
            ClipgenError: A part is empty, is `..`, or holds a separator, so that it could leave the root.
        """
        for part in parts:
            if not SAFE_PART.fullmatch(part) or part in (".", ".."):
                raise ClipgenError(f"{part!r} is no safe file name under {self.root}: rename it")
        return "/".join([self.root.rstrip("/"), *parts])

    @property
    def images(self) -> str:
        return self.path("images.lance")

    @property
    def rejects(self) -> str:
        return self.path("rejects.lance")

    @property
    def files(self) -> str:
        return self.path("files.lance")

    @property
    def copies(self) -> str:
        return self.path("copies.lance")

    @property
    def missing(self) -> str:
        return self.path("missing.lance")

    def embeddings(self, clip_key: str) -> str:
        return self.path("embeddings", f"{clip_key}.lance")

    def duplicates(self, clip_key: str) -> str:
        return self.path("duplicates", f"{clip_key}.lance")

    def codes(self, fingerprint: str) -> str:
        return self.path("codes", f"{fingerprint}.lance")

    def tokens(self, vqgan_digest: str, clip_key: str, fingerprint: str) -> str:
        """The folder of token shards.

        Args:
            vqgan_digest: Digest of what the VQGAN was made from.
            clip_key: Names the CLIP.
            fingerprint: Digest of the shards' inputs.

        Returns:
            The URL.
        """
        return self.path("tokens", f"{vqgan_digest}-{clip_key}-{fingerprint}")

    def checkpoints(self, stage: str, run: str) -> str:
        """The folder of a training's checkpoints.

        Args:
            stage: Clip, vqgan or transformer.
            run: Digest of what is trained on what.

        Returns:
            The URL.
        """
        return self.path("checkpoints", stage, run)

    def report(self, run: str) -> str:
        return self.path("reports", run)

    def champions(self, model: str) -> str:
        return self.path("champions", f"{model}.lance")

    def has(self, stage: str) -> bool:
        """Whether a stage, which is a key of ASSETS, has finished an artefact."""
        return exists(self.path("current", f"{stage}.json"))

    def current(self, stage: str, needed_for: str) -> Pointer:
        """The latest finished artefact of a stage.

        Args:
            stage: A key of ASSETS.
            needed_for: What needs it, for the message.

        Returns:
            Its path and digest.

        Raises:
            ClipgenError: The stage has not finished under this root yet, or its pointer is damaged.
        """
        path, asset = self.path("current", f"{stage}.json"), ASSETS[stage][0]
        if not self.has(stage):
            raise ClipgenError(
                f"there is no {asset} under {self.root} yet, which {needed_for} needs: "
                f"{remedy(stage, 'first')}"
            )
        try:
            pointer = Pointer.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise ClipgenError(
                f"{path}, which says where the newest {asset} is, is damaged ({first_line(error)}): "
                f"{remedy(stage)}, which writes it anew and keeps what is finished"
            ) from error
        moved = pointer.root and located(portable(pointer.path, pointer.root), self.root)
        return Pointer(path=moved or pointer.path, digest=pointer.digest)

    def publish_current(self, stage: str, path: str, digest: str) -> None:
        """Point to a finished artefact.

        Args:
            stage: A key of ASSETS.
            path: Where the artefact is.
            digest: Of what it was made from.
        """
        pointer = Pointer(path=path, digest=digest, root=self.root).model_dump_json()
        write_bytes(self.path("current", f"{stage}.json"), pointer.encode())


def portable(record: Record, root: str | None) -> Record:
    """A record as it is stored: it stays true, and its digest the same, where the root is copied or moved.

    Args:
        record: A model of pydantic, an address, or a value of JSON.
        root: The root under which the record lies; None if it lies under no root.

    Returns:
        The record, with the addresses under the root relative to it.
    """
    stored: Record = record if root is None else _with_other_root(record, root.rstrip("/"), HERE)
    return stored


def located(record: Record, root: str | None) -> Record:
    """A stored record as it can be used: the other direction of `portable`.

    Args:
        record: A model of pydantic, an address, or a value of JSON.
        root: The root under which the record lies now; None if it lies under no root.

    Returns:
        The record, with addresses in full. Under no root, and where they were stored so, they stay as they
        are.
    """
    usable: Record = record if root is None else _with_other_root(record, HERE, root.rstrip("/"))
    return usable


def require_root(url: str, needed: str) -> None:
    """Refuse an artefact that was taken out of its root, where it needs the rest of that root.

    Args:
        url: The artefact.
        needed: The address of something that it needs, as `located` returned it.

    Raises:
        ClipgenError: The address is relative to a root, and which one is not known.
    """
    if needed.startswith(f"{HERE}/"):
        raise ClipgenError(
            f"{url} was taken out of its root, where {needed.removeprefix(HERE + '/')} is, which it needs: "
            "give its address under the root, or of a model save a generator folder (save_pretrained)"
        )


def root_of(url: str) -> str | None:
    """The root of a checkpoint, of a training, or of a folder or table whose records name other artefacts.

    Args:
        url: A local path or an fsspec URL.

    Returns:
        The root; None if the artefact does not lie where a root has it, such as in a generator folder.
    """
    address = url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())
    found = WITH_RECORDS.fullmatch(address)
    return _full(found[1] or "/") if found else None


def _full(root: str) -> str:
    return root if "://" in root else str(Path(root).expanduser().resolve())


def _with_other_root(value: Any, old: str, new: str) -> Any:
    """A value with another root in all texts in it that are addresses under the old root."""
    if isinstance(value, Frozen):
        stored = value.model_dump(mode="json", exclude_unset=True)
        return type(value).model_validate(_with_other_root(stored, old, new))
    if isinstance(value, dict):
        return {key: _with_other_root(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_other_root(one, old, new) for one in value]
    if isinstance(value, str):
        kind = LOCAL if value.startswith(LOCAL) else ""
        if value.startswith(f"{kind}{old}/"):
            return kind + new + value.removeprefix(kind + old)
    return value


def last_root(stage: str) -> str:
    """The root beside DEFAULT_ROOT in which `stage` finished last; DEFAULT_ROOT if it finished in none."""
    pointers = Path(DEFAULT_ROOT).parent.glob(f"*/current/{stage}.json")
    newest = max(pointers, key=lambda pointer: pointer.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else DEFAULT_ROOT
