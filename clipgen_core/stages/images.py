"""Ingest images: each image of a source becomes a row of the images table or of the rejects.

In:  a folder on any fsspec filesystem: image files, .tar shards, Parquet files, in any subfolders
Out: {root}/images.lance (one row a distinct image), rejects.lance (uri, reason, detail), files.lance (the
     files that were read, so that unchanged files are not read again), copies.lance (further places of
     an image)
Run: `raw_images` in Dagster, or `clipgen embed FOLDER`.
"""

from dataclasses import dataclass

from clipgen_core import logs
from clipgen_core.data.files import (
    begin,
    known_folders,
    other_files,
    reject_reasons,
)
from clipgen_core.data.images import preview
from clipgen_core.data.ingest import Ingest
from clipgen_core.data.ingested import begin_columns, begin_references
from clipgen_core.data.keys import digest_of_keys
from clipgen_core.data.referenced import require_address
from clipgen_core.data.sources import Source
from clipgen_core.data.tables import open_table, scan_keys
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.images import Config
from clipgen_core.storage import Storage
from clipgen_core.tracking import Tracker

__all__ = ["Config", "Result", "preview", "run"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run read, and what the images table holds now.

    replaced: images that were forgotten, because their files hold other ones now, or no longer hold them.
    left: images that were forgotten, because their files left the source (images.mirror_after_days).
    missing: files that have left the source, and whose images are forgotten later.
    rejects: how many for each reason, in this source.
    others: how many files of each ending are no images, such as labels.
    vanished: top-level folders that were there before; their rows stay until `clipgen prune`.
    listings: for each top-level folder the digest of its files and their stamps.
    lacking: images whose metadata could not be read.
    """

    table: str
    digest: str
    found: int
    added: int
    replaced: int
    left: int
    missing: int
    total: int
    rejected: int
    rejects: dict[str, int]
    others: dict[str, int]
    vanished: tuple[str, ...]
    listings: dict[str, str]
    lacking: int

    @property
    def reject_share(self) -> float:
        """Rejects among the images that were found."""
        return self.rejected / max(self.found, 1)


def run(config: Config, *, source: str, out: Storage, tracker: Tracker, folder: str | None = None) -> Result:
    """Read the images that are new or have changed.

    Args:
        config: Which images are accepted, and how they are read.
        source: A folder, local or an fsspec URL.
        out: The root that gets the tables.
        tracker: Gets the counts.
        folder: One top-level folder of the source; all if None.

    Returns:
        The table and its counts.

    Raises:
        ClipgenError: The source is empty, holds no usable image, or no longer has the folder.
    """
    tracker.params({"config": config.model_dump()})
    opened = Source(source, config)
    vanished = tuple(sorted(set(known_folders(out, opened)) - set(opened.folders())))
    if folder is not None and folder in vanished:
        raise ClipgenError(f"the folder {folder!r} is no longer under {source}: see `clipgen prune`")
    begin(out, opened.columns.fields)
    begin_columns(out, opened.columns)
    if config.store == "references":
        require_address(opened.filesystem, opened.root, opened.base_uri)
        begin_references(out)
    ingest = Ingest(config, out, opened)
    speed = ingest.read(folder)
    others = other_files(out, opened, folder)
    if not ingest.found and folder is None:
        held = f"holds no image, but {_listed(others)}" if others else "is empty"
        raise ClipgenError(f"the source folder {source} {held}: put images into it")
    if ingest.lacking:
        logs.line(f"the metadata of {ingest.lacking} images cannot be read, first that in {ingest.damaged}")
    mirrored = ingest.mirror(folder)
    images = open_table(out.images)
    if not images.count_rows():
        raise ClipgenError(
            f"none of the {ingest.found} files under {source} is a usable image: "
            f"{out.rejects} says why for each"
        )
    result = Result(
        table=out.images,
        digest=digest_of_keys(scan_keys(images)),
        found=ingest.found,
        added=ingest.added,
        replaced=ingest.replaced,
        left=mirrored.forgotten,
        missing=mirrored.missing,
        total=images.count_rows(),
        rejected=ingest.rejected,
        rejects=reject_reasons(out, opened, folder),
        others=others,
        vanished=vanished,
        listings={name: listing.hex for name, listing in ingest.listings.items()},
        lacking=ingest.lacking,
    )
    counts = {"images": result.total, "images_found": result.found, "images_added": result.added}
    counts |= {"images_replaced": result.replaced, "images_left": result.left}
    counts |= {f"rejects/{reason}": count for reason, count in result.rejects.items()}
    counts |= {"other_files": sum(others.values()), "images_without_metadata": result.lacking}
    tracker.metrics({**counts, "reject_share": result.reject_share, "images_per_second": speed}, step=0)
    return result


def _listed(others: dict[str, int]) -> str:
    most = sorted(others, key=lambda ending: -others[ending])[:3]
    return (
        f"{sum(others.values())} files of other kinds ({', '.join(f'{others[one]} {one}' for one in most)})"
    )
