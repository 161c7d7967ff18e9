import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Part, code_type, digest_of, digest_of_ids, is_validation


@given(st.integers(2, 2**32))
def test_code_type_holds_every_code(size: int) -> None:
    pa.array([0, size - 1], type=code_type(size))


def test_a_codebook_that_fits_no_type_is_refused() -> None:
    assert code_type(2**16) == pa.uint16()
    assert code_type(2**16 + 1) == pa.uint32()
    for size in (0, 1, 2**32 + 1):
        with pytest.raises(ClipgenError, match="codebook_size"):
            code_type(size)


@given(st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), unique=True), st.randoms())
def test_digest_of_ids_ignores_order(ids: list[str], random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert digest_of_ids(ids) == digest_of_ids(shuffled)
    assert digest_of_ids(ids) != digest_of_ids([*ids, "zz"])


def test_validation_share_is_about_two_percent() -> None:
    held = sum(is_validation(digest_of(i)) for i in range(5000))
    assert 60 < held < 140


def test_records_refuse_unknown_keys_and_changes() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Part(file="a", rows=1, sha256="x", other=1)  # type: ignore[call-arg]
    part = Part(file="a", rows=1, sha256="x")
    with pytest.raises(ValidationError, match="frozen"):
        part.rows = 2
