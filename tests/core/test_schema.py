import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clipgen_core.errors import ClipgenError
from clipgen_core.schema import Part, code_type


@given(st.integers(2, 2**32))
def test_code_type_holds_every_code(size: int) -> None:
    pa.array([0, size - 1], type=code_type(size))


def test_a_codebook_that_fits_no_type_is_refused() -> None:
    assert code_type(2**16) == pa.uint16()
    assert code_type(2**16 + 1) == pa.uint32()
    for size in (0, 1, 2**32 + 1):
        with pytest.raises(ClipgenError, match="codebook_size"):
            code_type(size)


def test_records_refuse_unknown_keys_and_changes() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Part(file="a", rows=1, sha256="x", other=1)  # type: ignore[call-arg]
    part = Part(file="a", rows=1, sha256="x")
    with pytest.raises(ValidationError, match="frozen"):
        part.rows = 2
