"""Where artefacts live: paths under one root, and a pointer to each stage's latest artefact.

The root is a local folder or any fsspec URL. Knows nothing of what the artefacts hold.
"""

import re
from pathlib import Path

from pydantic import ValidationError

from clipgen_core.errors import ClipgenError, first_line
from clipgen_core.filesystem import exists, read_bytes, url_to_fs, write_bytes
from clipgen_core.schema import Frozen

DEFAULT_ROOT = ".clipgen/default"
SAFE_PART = re.compile(r"[\w.@=+,-]+")

JOB = "dagster job execute -m pipelines.definitions -j"
ASSETS = {  # stage: the Dagster asset that holds its artefact, and a command that makes it
    "clip": ("clip_checkpoint", "clipgen train clip"),
    "embeddings": ("clip_embeddings", "clipgen embed"),
    "vqgan": ("vqgan_checkpoint", "clipgen train vqgan"),
    "tokens": ("token_shards", f"{JOB} clip_gen -c CONFIG.yaml"),
    "transformer": ("transformer_checkpoint", "clipgen train transformer"),
    "evaluation": ("evaluation_report", f"{JOB} evaluation -c CONFIG.yaml"),
}


class Pointer(Frozen):
    """The latest finished artefact of a stage."""

    path: str
    digest: str


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
        self.root = root if "://" in root else str(Path(root).expanduser().resolve())

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
        path, (asset, command) = self.path("current", f"{stage}.json"), ASSETS[stage]
        if not exists(path):
            raise ClipgenError(
                f"there is no {asset} under {self.root} yet, which {needed_for} needs: materialise {asset}, "
                f"or run `{command}` first"
            )
        try:
            return Pointer.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise ClipgenError(
                f"{path}, which says where the newest {asset} is, is damaged ({first_line(error)}): "
                f"materialise {asset} again, which writes it anew and keeps what is finished"
            ) from error

    def publish_current(self, stage: str, path: str, digest: str) -> None:
        """Point to a finished artefact.

        Args:
            stage: A key of ASSETS.
            path: Where the artefact is.
            digest: Of what it was made from.
        """
        pointer = Pointer(path=path, digest=digest).model_dump_json()
        write_bytes(self.path("current", f"{stage}.json"), pointer.encode())


def last_root(stage: str) -> str:
    """The root beside DEFAULT_ROOT in which `stage` finished last; DEFAULT_ROOT if it finished in none."""
    pointers = Path(DEFAULT_ROOT).parent.glob(f"*/current/{stage}.json")
    newest = max(pointers, key=lambda pointer: pointer.stat().st_mtime, default=None)
    return str(newest.parents[1]) if newest else DEFAULT_ROOT
