from pathlib import Path

import lance
import pyarrow as pa
import pytest

from clipgen_core.data.images import ImageTable
from clipgen_core.data.selection import selected_keys
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import IMAGES

SCORE, CAPTION, LICENSE = (
    pa.field("score", pa.float64()),
    pa.field("caption", pa.string()),
    pa.field("license", pa.string()),
)


@pytest.fixture
def table(tmp_path: Path) -> lance.LanceDataset:
    """Ten images, of which one has no score."""
    rows = [
        {
            "id": f"{i:02x}" * 32,
            "uri": f"file:///{i}.png",
            "folder": "a",
            "format": "PNG",
            "width": 8 * i,
            "height": 8,
        }
        | {"image": b"", "score": i or None, "caption": "a disc", "license": "cc0" if i % 2 else "it's mine"}
        for i in range(10)
    ]
    schema = pa.schema([*IMAGES, SCORE, CAPTION, LICENSE])
    return lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), str(tmp_path / "images.lance"))


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (None, 10),
        ("score > 5", 4),
        ("Score > 5 AND license IN ('cc0')", 2),
        ("license = 'it''s mine'", 5),
        ("NOT (score > 5)", 5),
        ("width >= 32 OR score IS NULL", 7),
        ("uri LIKE '%;%' OR folder = 'a'", 10),
    ],
)
def test_conditions(table: lance.LanceDataset, where: str | None, count: int) -> None:
    assert len(selected_keys(table, where, "tokens.where")) == count


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("scor > 5", "No field named scor. Did you mean 'score'"),
        ("score >", "Expected: an expression"),
        ("score > 'high'", "could not convert"),
        ("score", "does not return a boolean"),
        ("score > 5; license = 'cc0'", "it holds a semicolon"),
        ("\"license\" = 'cc0'", "it has double quotes"),
        ("caption LIKE '%disc%'", "No field named caption"),
        ("image IS NOT NULL", "No field named image"),
    ],
)
def test_what_is_no_condition_is_one_sentence_that_names_the_columns(
    table: lance.LanceDataset, where: str, said: str
) -> None:
    with pytest.raises(ClipgenError) as caught:
        selected_keys(table, where, "tokens.where")
    message = str(caught.value)
    assert (
        message.startswith(f"tokens.where is {where!r}, which is no condition on the images (")
        and said in message
    )
    assert "write one in SQL on id (string), uri (string)" in message and "score (double), license" in message
    assert "caption (" not in message and ".rs" not in message and "\n" not in message


def test_a_condition_that_selects_nothing_or_too_little(table: lance.LanceDataset) -> None:
    with pytest.raises(ClipgenError, match="which selects 0 of 10 images: change it"):
        selected_keys(table, "score > 50", "vqgan.where")
    with pytest.raises(
        ClipgenError, match=r"holds 2 of the 10 images that vqgan.where selects from, too few"
    ):
        ImageTable(table.uri, "score > 7", "vqgan.where")


def test_rows_are_those_of_the_whole_table(table: lance.LanceDataset) -> None:
    chosen = ImageTable(table.uri, "score > 5", "vqgan.where")
    assert (len(chosen.keys), chosen.total) == (4, 10)
    assert sorted([*chosen.train, *chosen.validation]) == [6, 7, 8, 9]
    assert chosen.digest != ImageTable(table.uri).digest
