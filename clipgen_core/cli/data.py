"""Commands that ingest images and report what there is."""

import csv
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Column, Table

from clipgen_core import logs
from clipgen_core.cli.options import Command, Root, app, console
from clipgen_core.cli.sheets import require_writable
from clipgen_core.storage import Storage, last_root

if TYPE_CHECKING:
    from clipgen_core.stages.images import Result

TOP = "."  # stands for the images in no folder


@app.command(cls=Command)
def embed(
    folder: Annotated[str, typer.Argument(help="A folder of images, or an fsspec URL.")],
    root: Root = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="hub:MODEL/PRETRAINED or local-dir:FOLDER; by default the last trained CLIP, or that of the "
            "newest embeddings."
        ),
    ] = None,
    retry_rejects: Annotated[
        bool, typer.Option(help="Read files again that had unusable images before.")
    ] = False,
    read_again: Annotated[
        bool, typer.Option(help="Read all files again, for metadata that is new or has changed.")
    ] = False,
    references: Annotated[
        bool | None,
        typer.Option(help="Refer to the images instead of storing them; by default as the root does."),
    ] = None,
    mirror_after_days: Annotated[
        float | None,
        typer.Option(min=0, help="Forget images so many days after a run missed their files in the folder."),
    ] = None,
) -> None:
    """Ingest a folder of images and embed those that are new."""
    logs.line(f"listing {folder} and reading its new images")  # before imports that take seconds
    from clipgen_core.data.tables import open_table
    from clipgen_core.models.clip_files import absolute
    from clipgen_core.preflight.models import available
    from clipgen_core.stages import embeddings, images
    from clipgen_core.tracking import NullTracker

    storage = Storage(root or last_root("clip"))
    reference = clip or _newest_clip(storage)
    available(absolute(reference))  # before the source is read
    store = _what_is_stored(storage, references)
    config = images.Config(
        retry_rejects=retry_rejects,
        read_again=read_again,
        store=store,
        mirror_after_days=mirror_after_days,
    )
    ingested = images.run(config, source=folder, out=storage, tracker=NullTracker())
    logs.line(f"embedding the new images by {reference}")
    embedded = embeddings.run(
        embeddings.Config(), images=ingested.table, clip=reference, out=storage, tracker=NullTracker()
    )
    _say_what_was_read(ingested, open_table(ingested.table).count_rows())
    for gone in ingested.vanished:
        command = f"clipgen prune {quote(gone or TOP)} --source {quote(folder)} --root {quote(storage.root)}"
        console.print(f"the folder {gone or TOP} is gone from {folder}: its rows stay until `{command}`")
    console.print(f"{embedded.embedded} images were embedded in {embedded.table}")


def _newest_clip(storage: Storage) -> str:
    """The CLIP that was trained last under a root, or else the one of its newest embeddings."""
    from clipgen_core.data.embeddings import EmbeddingTable

    if not storage.has("clip") and storage.has("embeddings"):
        return EmbeddingTable(storage.current("embeddings", "embedding without --clip").path).clip
    return storage.current("clip", "embedding without --clip").path


def _say_what_was_read(ingested: "Result", total: int) -> None:
    """Print the counts of a run.

    Args:
        ingested: What it read.
        total: How many images the table holds after they were embedded.
    """
    said = f"{ingested.found} images were found, {ingested.added} of them new"
    console.print(f"{said}; the images table holds {total} now")
    if (gone := ingested.total - total) > 0:
        is_gone = "1 image is" if gone == 1 else f"{gone} images are"
        console.print(f"{is_gone} gone from the source or damaged, and set aside: see `clipgen rejects`")
    if ingested.replaced:
        console.print(f"{ingested.replaced} images are forgotten: their files hold others or none now")
    if ingested.left:
        console.print(f"{ingested.left} images are forgotten: their files left the folder")
    if ingested.missing:
        console.print(f"{ingested.missing} files left the folder: their images are forgotten by a later run")
    if ingested.others:
        endings = ", ".join(f"{count} {ending}" for ending, count in sorted(ingested.others.items()))
        console.print(f"{sum(ingested.others.values())} files are no images: {endings}")
    for reason, count in sorted(ingested.rejects.items()):
        console.print(f"{count} of them cannot be used ({reason}): see `clipgen rejects`")


def _what_is_stored(storage: Storage, references: bool | None) -> Literal["images", "references"]:
    """The setting images.store, by default as the images table of a root is."""
    from clipgen_core.data.referenced import reference_of
    from clipgen_core.data.tables import find_table

    table = find_table(storage.images)
    refers = bool(table and reference_of(table)) if references is None else references
    return "references" if refers else "images"


@app.command(cls=Command, name="import-embeddings")
def import_embeddings(
    folder: Annotated[str, typer.Argument(help="Holds img_emb and metadata, as clip-retrieval has.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where the images table is.")],
    clip: Annotated[str, typer.Option(help="The CLIP that made them, such as hub:MODEL/PRETRAINED.")],
    source: Annotated[
        str | None, typer.Option(help="The folder that relative names of images are in.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option(help="Leave out rows whose images the images table lacks.")
    ] = False,
) -> None:
    """Take over embeddings that another program computed, for images that were read."""
    from clipgen_core.stages import embeddings

    done = embeddings.import_from(
        folder, clip=clip, out=Storage(root), source=source, skip_missing=skip_missing
    )
    console.print(f"{done.added} of {done.rows} embeddings are new in {done.table}")
    if done.missing:
        console.print(f"{done.missing} are left out: their images were not read")


@app.command(cls=Command, name="export-embeddings")
def export_embeddings(
    folder: Annotated[str, typer.Argument(help="A new folder, or an fsspec URL.")], root: Root = None
) -> None:
    """Write the newest embeddings of a root as clip-retrieval does: .npy and Parquet files."""
    from clipgen_core.data.embeddings import EmbeddingTable
    from clipgen_core.data.exchange import export

    storage = Storage(root or last_root("embeddings"))
    table = EmbeddingTable(storage.current("embeddings", "the export").path)
    rows, gone = export(table, storage.images, folder)
    console.print(f"{rows} embeddings of {table.clip} are in {folder}")
    if gone:
        console.print(f"{gone} are left out: their images are gone")


@app.command(cls=Command)
def folders(root: Root = None) -> None:
    """Show the top-level folders that images were ingested from, how many each has (.: in no folder), and
    their sources."""
    from clipgen_core.data.folders import source_of
    from clipgen_core.data.tables import open_table, scan

    storage = Storage(root or last_root("embeddings"))
    counts = Counter[tuple[str, str]]()
    for batch in scan(open_table(storage.images), ["folder", "uri"]):
        rows = zip(batch["folder"].to_pylist(), batch["uri"].to_pylist(), strict=True)
        counts.update((folder, source_of(uri, folder)) for folder, uri in rows)
    wide = max(map(len, [*(folder for folder, _ in counts), "folder"]))
    console.print(f"{'folder':{wide}}  images  source")
    for (folder, source), count in sorted(counts.items()):
        console.print(f"{folder or TOP:{wide}}  {count:6}  {source}")


@app.command(cls=Command)
def stats(root: Root = None) -> None:
    """Show what was read: images, formats, sizes, copies, rejects, metadata."""
    from clipgen_core.data.overview import SHARES, overview

    storage = Storage(root or last_root("embeddings"))
    seen = overview(storage)
    sheet = Table(Column("what", overflow="fold"), Column("count", justify="right"), box=None)
    sheet.add_row("images", str(seen.images))
    for name, count in seen.formats.items():
        sheet.add_row(f"  {name}", str(count))
    sheet.add_row("bytes of the table", f"{seen.size:,}")
    if seen.referenced:
        sheet.add_row("images referenced in their source", str(seen.referenced))
        sheet.add_row("  bytes there", f"{seen.source_bytes:,}")
    sheet.add_row("further places of these images", str(seen.copies))
    sheet.add_row("files read", str(seen.files))
    sheet.add_row("  of which no image", str(seen.others))
    sheet.add_row("rejects", str(sum(seen.rejects.values())))
    for reason, count in seen.rejects.items():
        sheet.add_row(f"  {reason}", str(count))
    for column in seen.columns:
        sheet.add_row(f"with {column.name}{_span(column.range)}", str(column.count))
        for value, count in column.values:
            sheet.add_row(f"  {value}", str(count))
    console.print(sheet)
    sides = ", ".join(f"{share:.0%} {side}" for share, side in zip(SHARES, seen.sides, strict=False))
    console.print(f"short sides in pixels, from the smallest to the largest: {sides}")


def _span(values: tuple[float, float] | None) -> str:
    return f" ({values[0]:g} to {values[1]:g})" if values else ""


@app.command(cls=Command)
def rejects(
    root: Root = None,
    reason: Annotated[str | None, typer.Option(help="Only those of one reason, such as damaged.")] = None,
    most: Annotated[int, typer.Option("-n", min=1, help="Rows to show.")] = 50,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all of them to this CSV file.")
    ] = None,
) -> None:
    """List the images that could not be used, and why."""
    from clipgen_core.data.overview import rejects
    from clipgen_core.data.tables import open_table

    storage = Storage(root or last_root("embeddings"))
    rows = list(rejects(storage, reason))
    if not rows:
        open_table(storage.images)  # or nothing was read at all
        console.print(f"no image was rejected{f' as {reason}' if reason else ''} under {storage.root}")
    if output:
        require_writable(output, ".csv")
        with output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("uri", "file", "reason", "detail"))
            writer.writeheader()
            writer.writerows(rows)
        console.print(f"{len(rows)} rejects are in {output}")
        return
    for row in rows[:most]:
        console.print(f"{row['reason']}: {row['uri']} ({row['detail']})")
    if len(rows) > most:
        console.print(f"and {len(rows) - most} more: show them by -n, or write all to a file by -o")
