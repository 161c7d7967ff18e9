from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage


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
        match=r"no vqgan_checkpoint .* which tokens needs: .* `clipgen train vqgan`",
    ):
        storage.current("vqgan", "tokens")
    storage.publish_current("vqgan", "/somewhere/step-1", "abc")
    assert storage.current("vqgan", "tokens").path == "/somewhere/step-1"


def test_a_damaged_pointer_is_one_sentence_with_the_way_out(storage: Storage) -> None:
    storage.publish_current("tokens", "/somewhere", "abc")
    Path(storage.path("current", "tokens.json")).write_text("{")
    with pytest.raises(ClipgenError, match=r"tokens.json, .* is damaged .*: materialise token_shards again"):
        storage.current("tokens", "the transformer")
