"""Remove single images from all tables: those of some places, or of some ids.

An image that also lies at another place (see copies.lance) is kept and moved there, except where it is named
by its id. Versions of tables that a model was trained on are tagged and can still be read.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from clipgen_core.data.files import AT_ONCE, under
from clipgen_core.data.move import move
from clipgen_core.data.sources import Source, in_lists
from clipgen_core.data.tables import delete, find_table, one_of, open_table, quoted, scan
from clipgen_core.data.upkeep import tables
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage

NONE: Mapping[str, str] = {}
ARCHIVES_AT_ONCE = 50  # whose members one condition names


def forget_ids(out: Storage, ids: Sequence[str], *, dry_run: bool = False) -> int:
    """Remove images by their ids, wherever they lie.

    Images whose nearest one was removed are looked up again by the next run of near_duplicates. The images
    table is last, so that a call that was killed can be repeated.

    Args:
        out: The root.
        ids: Ids of images.
        dry_run: Whether to count only.

    Returns:
        How many the images table had.
    """
    found = sum(
        open_table(out.images).count_rows(filter=one_of("id", some)) for some in in_lists(ids, AT_ONCE)
    )
    for some in in_lists(ids, AT_ONCE) if not dry_run else ():
        for url in (*(url for url in tables(out) if url != out.images), out.images):
            table = find_table(url)
            names = set(table.schema.names) if table is not None else set[str]()
            for name in sorted(names & {"id", "nearest"}):
                delete(url, one_of(name, some))
    return found


def forget_places(
    out: Storage, uris: Sequence[str], now: Mapping[str, str] = NONE, *, dry_run: bool = False
) -> int:
    """Remove the images of places that no longer hold them.

    Args:
        out: The root.
        uris: The places.
        now: The id of the image that a place holds now, of those that hold one.
        dry_run: Whether to count only.

    Returns:
        How many images are removed, or would be: those that lie nowhere else.
    """
    gone = 0
    for some, stale, elsewhere in _left(out, uris, now):
        gone += len(stale) - len(elsewhere)
        if not dry_run:
            move(out, elsewhere)
            forget_ids(out, sorted(stale.keys() - elsewhere.keys()))
            _forget_copies(out, some, now)
    return gone


def unknown(out: Storage, ids: Sequence[str], uris: Sequence[str]) -> list[str]:
    """Which names are of no image that was read.

    Args:
        out: The root.
        ids: Names that look like ids.
        uris: The other names.

    Returns:
        Those that the tables of images and of their further places lack, in order.
    """
    there, table = set[str](), open_table(out.images)
    for some in in_lists(ids, AT_ONCE):
        there.update(table.to_table(columns=["id"], filter=one_of("id", some))["id"].to_pylist())
    for some in in_lists(uris, AT_ONCE):
        there.update(places(out, one_of("uri", some)))
    return [name for name in (*ids, *uris) if name not in there]


def only_at(out: Storage, uris: Sequence[str]) -> list[str]:
    """The ids of the images that `forget_places` would remove.

    Args:
        out: The root.
        uris: The places.

    Returns:
        Ids of images that lie nowhere else.
    """
    return sorted(
        one for _, stale, elsewhere in _left(out, uris, NONE) for one in stale.keys() - elsewhere.keys()
    )


def at(out: Storage, uris: Sequence[str]) -> set[str]:
    """The ids of the images that lie at places, whether or not they lie elsewhere too.

    Args:
        out: The root.
        uris: The places.

    Returns:
        Ids of images.
    """
    held = [table for url in (out.images, out.copies) if (table := find_table(url)) is not None]
    found = set[str]()
    for some in in_lists(uris, AT_ONCE):
        for table in held:
            found.update(table.to_table(columns=["id"], filter=one_of("uri", some))["id"].to_pylist())
    return found


def places_under(out: Storage, uri: str) -> list[str]:
    """The places of images in a folder or an archive, which need not be there any more.

    Args:
        out: The root.
        uri: The URI of the folder or the archive.

    Returns:
        Their URIs.

    Raises:
        ClipgenError: No image was read from it.
    """
    starts = (f"starts_with(uri, {quoted(uri.rstrip('/') + sign)})" for sign in "/#")
    found = list(places(out, " OR ".join(starts)))
    if not found:
        raise ClipgenError(f"no image under {out.root} was read from {uri}: check the address")
    return found


def missing(out: Storage, source: Source) -> list[str]:
    """The places of images whose files are no longer in their source.

    Args:
        out: The root.
        source: The source, which is listed.

    Returns:
        Their URIs.

    Raises:
        ClipgenError: No image was read from this source, or none of its files is there.
    """
    there, read = {file.uri for file in source.files()}, list(places(out, under(source, None)))
    gone = [uri for uri in read if there.isdisjoint(holders(uri))]
    if not read:
        raise ClipgenError(f"no image under {out.root} was read from {source.url}: check the address")
    if len(gone) == len(read):
        raise ClipgenError(
            f"no file is left of the {len(read)} images that were read from {source.url}: check that it is "
            f"mounted; to forget all of them, use `clipgen forget --under {source.url} --root {out.root}`"
        )
    return gone


def forget_left(out: Storage, members: Mapping[str, Collection[str]]) -> int:
    """Remove the images of members that archives no longer have.

    Args:
        out: The root.
        members: The URIs of all members that an archive has now, by its own URI.

    Returns:
        How many images are removed: those that lie nowhere else.
    """
    gone, there = list[str](), {uri for some in members.values() for uri in some}
    for some in in_lists(members, ARCHIVES_AT_ONCE):
        where = " OR ".join(f"starts_with(uri, {quoted(f'{archive}#')})" for archive in some)
        gone += [uri for uri in places(out, where) if uri not in there]
    return forget_places(out, held_by(out, gone, members))


def places(out: Storage, where: str) -> Iterator[str]:
    """The URIs of images and of further places of them.

    Args:
        out: The root.
        where: An SQL condition on the column `uri`, and on `folder`.

    Yields:
        The URIs.
    """
    for url in (out.images, out.copies):
        table = find_table(url)
        for batch in scan(table, ["uri"], where) if table else ():
            yield from batch["uri"].to_pylist()


def holders(uri: str) -> list[str]:
    """The files that may hold a place: itself, or an archive before a #; the names of all may hold a #."""
    parts = uri.split("#")
    return ["#".join(parts[:end]) for end in range(len(parts), 0, -1)]


def held_by(out: Storage, uris: Iterable[str], files: Collection[str]) -> list[str]:
    """The places that are in some files.

    Args:
        out: The root, with the record of files that were read.
        uris: Places.
        files: URIs of files that were read.

    Returns:
        Those that the files hold: of the files that may hold a place, the one with the longest name does.
    """
    held, table = list[str](), open_table(out.files)
    for some in in_lists(uris, AT_ONCE):
        named = one_of("uri", sorted({holder for uri in some for holder in holders(uri)}))
        read = {uri for batch in scan(table, ["uri"], named) for uri in batch["uri"].to_pylist()}
        held += [uri for uri in some if next(filter(read.__contains__, holders(uri)), "") in files]
    return held


def _left(
    out: Storage, uris: Sequence[str], now: Mapping[str, str]
) -> Iterator[tuple[list[str], dict[str, str], dict[str, tuple[str, str]]]]:
    """Some of the places at once: them, the images that they no longer hold, and where else some of these
    lie."""
    left = set(uris)
    for some in in_lists(uris, AT_ONCE):
        stale = _stale(out, some, now)
        yield some, stale, _elsewhere(out, stale, left)


def _stale(out: Storage, uris: Sequence[str], now: Mapping[str, str]) -> dict[str, str]:
    """The places of images that they no longer hold, by id."""
    stale = dict[str, str]()
    for batch in scan(open_table(out.images), ["id", "uri"], one_of("uri", uris)):
        rows = zip(batch["id"].to_pylist(), batch["uri"].to_pylist(), strict=True)
        stale |= {image_id: uri for image_id, uri in rows if now.get(uri) != image_id}
    return stale


def _elsewhere(out: Storage, stale: Mapping[str, str], left: set[str]) -> dict[str, tuple[str, str]]:
    """The (uri, folder) of another place of images, by id, as far as they have one."""
    copies, places = find_table(out.copies), dict[str, tuple[str, str]]()
    if copies is None:
        return places
    for some in in_lists(sorted(stale), AT_ONCE):
        for row in copies.to_table(columns=["id", "uri", "folder"], filter=one_of("id", some)).to_pylist():
            if row["uri"] not in left:
                places[row["id"]] = row["uri"], row["folder"]
    return places


def _forget_copies(out: Storage, uris: Sequence[str], now: Mapping[str, str]) -> None:
    copies = find_table(out.copies)
    if copies is not None:
        rows = copies.to_table(columns=["id", "uri"], filter=one_of("uri", uris)).to_pylist()
        delete(out.copies, one_of("uri", [row["uri"] for row in rows if now.get(row["uri"]) != row["id"]]))
