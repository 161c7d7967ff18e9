from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import digest_of
from clipgen_core.storage import Pointer, Storage, located, portable, root_of

ROOTS = st.sampled_from(["/", "/a", "/a/b c", "/a/tokens", "s3://a", "s3://a/b/", "memory://a"])
NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=5)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@st.composite
def addresses(draw: st.DrawFn, root: str) -> str:
    """A text as records have them: an address under the root or elsewhere, or no address at all."""
    start = draw(st.sampled_from(["", "local-dir:", "hub:", "models:/", "x"]))
    return start + draw(st.sampled_from(["", root.rstrip("/") + "/", root, f"{root}x/", "/z/"])) + draw(PATHS)


@st.composite
def records(draw: st.DrawFn, root: str) -> object:
    """Values of JSON that hold addresses."""
    leaves = addresses(root) | st.none() | st.integers() | st.floats(allow_nan=False)
    return draw(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))


@given(st.data(), ROOTS, ROOTS)
def test_a_record_moves_with_its_root(data: st.DataObject, here: str, there: str) -> None:
    record = data.draw(records(here))
    stored = portable(record, here)
    assert located(stored, here) == record
    assert portable(stored, here) == stored, "it is stored once"
    assert digest_of(portable(located(stored, there), there)) == digest_of(stored) or is_under(record, there)


def is_under(record: object, root: str) -> bool:
    """Whether an address in the record lies under a root."""
    return portable(record, root) != record


@given(ROOTS, PATHS)
def test_what_lies_under_a_root_is_found_where_the_root_is(root: str, path: str) -> None:
    address = f"{root.rstrip('/')}/{path}"
    for kind in ("", "local-dir:"):
        stored = portable(kind + address, root)
        assert located(stored, "/new") == f"{kind}/new/{path}"
    pointer = portable(Pointer(path=address, digest="x"), root)
    assert (
        located(pointer, root) == Pointer(path=address, digest="x") and "root" not in pointer.model_fields_set
    )


@pytest.mark.parametrize("root", ["/", "/a", "/a/b c", "/a/tokens", "memory://a", "memory://a/b/"])
def test_artefacts_know_their_root(root: str) -> None:
    out = Storage(root)
    training = out.checkpoints("vqgan", "0123")
    for url in (training, f"{training}/step-00000001", out.tokens("a", "b", "c"), out.embeddings("clip")):
        for written in (url, f"{url}/"):
            assert root_of(written) in (out.root, out.root.rstrip("/"))
    assert root_of(f"{out.root.rstrip('/')}/generator/transformer") is None


@given(st.text(max_size=12))
def test_no_path_part_leaves_the_root(part: str) -> None:
    root = Storage("/data/root")
    try:
        path = Path(root.path("reports", part))
    except ClipgenError:
        return
    assert path.resolve().parent == Path("/data/root/reports")


@pytest.mark.parametrize("part", ["..", ".", "", "a/b", "a\\b", "a\0b", "a b"])
def test_unsafe_parts_are_refused(part: str) -> None:
    with pytest.raises(ClipgenError, match="no safe file name"):
        Storage("/data").path(part)


def test_pointer_round_trip_and_what_is_missing(storage: Storage) -> None:
    with pytest.raises(
        ClipgenError,
        match=r"no vqgan_checkpoint .* which tokens needs: .* `clipgen train-stage vqgan`",
    ):
        storage.current("vqgan", "tokens")
    storage.publish_current("vqgan", "/somewhere/step-1", "abc")
    assert storage.current("vqgan", "tokens").path == "/somewhere/step-1"


def test_a_pointer_is_in_full_and_follows_its_root(storage: Storage, tmp_path: Path) -> None:
    storage.publish_current("tokens", storage.tokens("a", "b", "c"), "abc")
    file = Path(storage.path("current", "tokens.json"))
    assert Pointer.model_validate_json(file.read_text()).path == storage.tokens("a", "b", "c")
    moved = Storage(str(Path(storage.root).rename(tmp_path / "moved")))
    assert moved.current("tokens", "tests").path == moved.tokens("a", "b", "c")


def test_a_damaged_pointer_is_one_sentence_with_the_way_out(storage: Storage) -> None:
    storage.publish_current("tokens", "/somewhere", "abc")
    Path(storage.path("current", "tokens.json")).write_text("{")
    with pytest.raises(
        ClipgenError,
        match=r"tokens.json, .* is damaged .*: materialise .* again in Dagster, or run `clipgen tokens`",
    ):
        storage.current("tokens", "the transformer")
