import hashlib
import random

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from clipgen_core.data.images import held_out
from clipgen_core.data.keys import Lookup, digest_of_keys, joined, keys_of_ids, keys_of_texts


def ids(texts: list[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


TEXTS = st.lists(st.text(), unique=True, max_size=30)


@given(TEXTS, st.randoms(use_true_random=False), st.integers(0, 30))
def test_the_digest_of_a_set_knows_no_order_and_no_parts(
    texts: list[str], shuffle: random.Random, cut: int
) -> None:
    keys = keys_of_ids(pa.array(ids(texts), pa.string()))
    other = ids(texts)
    shuffle.shuffle(other)
    again = keys_of_ids(pa.array(other, pa.string()))
    assert digest_of_keys([keys]) == digest_of_keys([again[:cut], again[cut:]])
    assert digest_of_keys([keys]) != digest_of_keys([keys, keys_of_texts(["one more"])])


@given(TEXTS, TEXTS)
def test_a_lookup_finds_what_is_there_and_nothing_else(there: list[str], asked: list[str]) -> None:
    found = Lookup(keys_of_texts(there)).find(keys_of_texts(asked))
    assert found.tolist() == [there.index(text) if text in there else -1 for text in asked]


def test_keys_keep_zero_bytes_and_array_offsets() -> None:
    zeros = ["00" * 32, "ab" + "00" * 31, "ab" * 16 + "00" * 16]
    keys = keys_of_ids(pa.array(["ff" * 32, *zeros])[1:])
    assert Lookup(keys).find(keys).tolist() == [0, 1, 2]


def test_about_two_percent_are_held_out_and_one_at_the_least() -> None:
    keys = keys_of_texts(map(str, range(5000)))
    assert 60 < held_out(keys).sum() < 140
    few = keys[~held_out(keys)][:5]
    assert held_out(few).sum() == 1
    assert len(joined(iter(()))) == 0 and isinstance(joined(iter(())), np.ndarray)
