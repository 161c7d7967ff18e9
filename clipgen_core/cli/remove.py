"""Commands that remove: images from all tables, and artefacts that nothing needs. Without --yes they only say
what would be removed."""

import re
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from clipgen_core.cli.data import TOP
from clipgen_core.cli.options import Command, app, console
from clipgen_core.errors import ClipgenError
from clipgen_core.filesystem import list_folder
from clipgen_core.storage import Storage

ID = re.compile("[0-9a-f]{64}")
SHOWN = 5  # entries that a message names


@app.command(cls=Command)
def prune(
    folder: Annotated[str, typer.Argument(help="A top-level folder, as `clipgen folders` shows it.")],
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
    source: Annotated[
        str | None, typer.Option(help="The source that has or had it; needed if several had one of its name.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; without it, only report what would be removed.")
    ] = False,
) -> None:
    """Forget the images of a folder. Models that were trained on them keep working."""
    from clipgen_core.data.prune import prune

    gone = prune(Storage(root), "" if folder == TOP else folder, source, dry_run=not yes)
    verb = "are removed" if yes else "would be removed; repeat with --yes"
    console.print(f"{gone.images} images of {folder} {verb}")
    if gone.moved:
        console.print(f"{gone.moved} are in other folders too and stay")


@app.command(cls=Command)
def gc(
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
    days: Annotated[int, typer.Option(min=1, help="Keep what is younger, whatever names it.")] = 30,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; without it, only report what would be removed.")
    ] = False,
) -> None:
    """Remove old checkpoints, shards, tables and reports that neither the newest artefacts nor a registered
    model were made from."""
    from clipgen_core.registry.unused import remove, unused

    storage = Storage(root)
    _require_root(storage)
    found = unused(storage, _registry(storage), timedelta(days=days))
    for one in found:
        console.print(f"{one.size / 1e6:10.1f} MB  {one.changed:%Y-%m-%d}  {one.name}")
    if yes:
        remove(storage, found)
    verb = "are removed" if yes else "would be removed; repeat with --yes" if found else "would be removed"
    console.print(f"{len(found)} artefacts, {sum(one.size for one in found) / 1e6:.1f} MB, {verb}")


def _require_root(storage: Storage) -> None:
    from clipgen_core.data.tables import find_table

    if find_table(storage.images) is None and not list_folder(storage.path("current")):
        raise ClipgenError(f"{storage.root} is no root, since no stage has finished there: check --root")


@app.command(cls=Command)
def forget(
    root: Annotated[str, typer.Option(envvar="CLIPGEN_ROOT", help="Where artefacts live.")],
    images: Annotated[list[str] | None, typer.Argument(help="Ids, files or URIs of images.")] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="A text file with one id, file or URI a line.")
    ] = None,
    missing: Annotated[
        str | None, typer.Option(help="A source: forget the images whose files are no longer in it.")
    ] = None,
    under: Annotated[
        str | None,
        typer.Option(help="A folder or an archive, also one that is gone: forget the images read from it."),
    ] = None,
    purge: Annotated[
        bool,
        typer.Option(help="Also let go of the versions of tables, token shards and reports that hold them."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; without it, only report what would be removed.")
    ] = False,
) -> None:
    """Forget single images: by id wherever they lie, by file or URI if they lie nowhere else."""
    from clipgen_core.data import begun, forget
    from clipgen_core.data.names import uri_of
    from clipgen_core.data.sources import Source

    storage, named = Storage(root), {*(images or []), *(_lines(listed) if listed else [])}
    if not (named or missing or under):
        raise ClipgenError("no image is named: give ids, files or URIs, --list, --missing or --under")
    ids = sorted(filter(ID.fullmatch, named))
    places = {uri_of(one): one for one in sorted(named.difference(ids))}
    _require_known(storage, ids, places, purge=purge)
    uris = [*places, *(forget.missing(storage, Source(missing)) if missing else [])]
    uris += forget.places_under(storage, uri_of(under)) if under else []
    gone = {*ids, *forget.only_at(storage, uris)}
    stay = forget.at(storage, uris) - gone
    _report_kept(storage, sorted(gone), purge=purge, yes=yes)
    with begun.noted(storage, [*ids, *places]) if yes else nullcontext():
        count = forget.forget_ids(storage, ids, dry_run=not yes)
        count += forget.forget_places(storage, uris, dry_run=not yes)
    console.print(f"{count} images {'are removed' if yes else 'would be removed; repeat with --yes'}")
    if stay:
        console.print(f"{len(stay)} lie at other places too and stay: name them by their ids to remove them")


def _require_known(storage: Storage, ids: list[str], places: dict[str, str], *, purge: bool) -> None:
    """Refuse entries that name no image, unless they were forgotten before."""
    from clipgen_core.data import begun, forget
    from clipgen_core.registry import kept

    unknown = forget.unknown(storage, ids, [*places])
    if unknown and begun.was_begun(storage, [*ids, *places]):
        of = f"{len(unknown)} of the {len(ids) + len(places)} entries"
        console.print(f"{of} were forgotten already, by a call that was stopped")
        return
    if purge and kept.find(storage, unknown).names:  # forgotten before, but not purged
        unknown = [one for one in unknown if one in places]
    if unknown:
        raise _unknown(storage, [places.get(one, one) for one in unknown], len(ids) + len(places))


def _lines(file: Path) -> list[str]:
    """The entries of a list of images."""
    if not file.is_file():
        raise ClipgenError(f"there is no file {file}: check the path")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClipgenError(f"{file} is no text in UTF-8 ({error.reason}): save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _unknown(storage: Storage, entries: list[str], given: int) -> ClipgenError:
    """What is said of entries that name no image."""
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return ClipgenError(
        f"{len(entries)} of the {given} entries name no image under {storage.root}, so nothing is removed: "
        f"{', '.join(entries[:SHOWN])}{more}: correct them or take them out (an image in an archive is "
        "ARCHIVE#MEMBER; `clipgen prune` forgets a folder)"
    )


def _registry(storage: Storage) -> Any:
    """MLflow's client; None if MLflow was never used here, and the root has nothing that was registered."""
    from clipgen_core.tracking import has_mlflow, mlflow_client, registry_uri

    if not (has_mlflow() or list_folder(storage.path("reports")) or list_folder(storage.path("champions"))):
        return None
    return mlflow_client(registry_uri())


def _report_kept(storage: Storage, ids: list[str], *, purge: bool, yes: bool) -> None:
    """Say what keeps images on disk, and which models saw them; let go of the former if `purge` and `yes`."""
    from clipgen_core.registry import kept

    try:
        client = _registry(storage)
        models = kept.models(storage, client, ids) if client else {}
    except ClipgenError as error:
        console.print(f"which registered models saw them is not known: {error}")
    else:
        for model, saw in models.items():
            console.print(f"{model} {'saw' if saw else 'may have seen'} them, and keeps what it learnt")
    found = kept.find(storage, ids)
    for name in found.names:
        console.print(f"{name} {'lets go of' if purge else 'keeps'} them")
    if purge and yes:
        kept.let_go(storage, found)
    elif found.names and not purge:
        console.print("these keep them on disk: --purge removes them, too")
