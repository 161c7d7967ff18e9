"""Which images are trained on: an SQL condition on the columns of the images table, `where`.

The condition may name every column but the image itself and its caption, since the method is language-free:
captions are read by `clip_training` and the evaluation alone.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from clipgen_core.data.embeddings import EmbeddingTable
from clipgen_core.data.fill import Filling, fill
from clipgen_core.data.keys import Lookup, joined, keys_of_ids
from clipgen_core.data.tables import create_table, delete, one_of, scan, scan_keys
from clipgen_core.data.upkeep import update_indexes
from clipgen_core.errors import ClipgenError
from clipgen_core.schema import REFERENCE
from clipgen_core.settings.compute import ComputeConfig

if TYPE_CHECKING:
    import lance

NOT_NAMED = ("image", "caption", REFERENCE.name)
NOISE = re.compile(r"^Invalid user input: |,? \S+\.rs:[\d:]+.*| Valid fields are .*")  # in Lance's messages
AT_ONCE = 4096  # rows
LITERAL = re.compile(r"'[^']*'")
REFUSED = {  # outside of texts
    ";": "it holds a semicolon",
    '"': "it has double quotes, which are of texts for Lance and of columns for SQL: put texts in single "
    "quotes, and columns in none",
}


def selected_keys(table: "lance.LanceDataset", where: str | None, setting: str) -> np.ndarray:
    """The images that a condition selects.

    Args:
        table: The images table.
        where: The condition; all images if None.
        setting: The name of the setting that holds it, for messages.

    Returns:
        Their keys in the table's order, S16 [n], n at least 1 where there is a condition.

    Raises:
        ClipgenError: It is no condition on the table's columns, or no image fulfils it.
    """
    if where is None:
        return joined(scan_keys(table))
    require_condition(table.schema, where, setting)
    keys = joined(keys_of_ids(batch["id"]) for batch in scan(table, ["id"], where))
    if not len(keys):
        require_chosen(table, where, setting)
    return keys


def require_chosen(table: "lance.LanceDataset", where: str, setting: str) -> None:
    """Refuse a condition that no image of a table fulfils.

    Args:
        table: The images table, which has the columns that the condition names.
        where: The condition.
        setting: The name of the setting that holds it, for messages.

    Raises:
        ClipgenError: No image fulfils it.
    """
    if not table.count_rows(filter=where):
        raise ClipgenError(
            f"{setting} is {where!r}, which selects 0 of {table.count_rows():,} images: change it, or "
            "first read images that it selects (an image without a value in a column fulfils no comparison "
            "with it)"
        )


def require_condition(schema: pa.Schema, where: str, setting: str) -> None:
    """Refuse what is no condition on the columns of the images table, before images are read.

    Args:
        schema: Of the table.
        where: The condition.
        setting: The name of the setting that holds it, for messages.

    Raises:
        ClipgenError: It does not parse, names another column, or compares values of different kinds.
    """
    fields = [field for field in schema if field.name not in NOT_NAMED]
    rest = LITERAL.sub("", where)
    refused = next((said for mark, said in REFUSED.items() if mark in rest), "")
    fault = refused or _fault(pa.schema(fields), where)
    if fault:
        columns = ", ".join(f"{field.name} ({field.type})" for field in fields)
        raise ClipgenError(
            f"{setting} is {where!r}, which is no condition on the images ({fault}): write one in SQL on "
            f"{columns}"
        )


def _fault(schema: pa.Schema, where: str) -> str:
    """Why Lance does not take a condition, as it says for an empty table; "" if it does."""
    import lance

    empty = lance.write_dataset(schema.empty_table(), "memory://images")
    try:
        empty.count_rows(filter=where)
    except (OSError, ValueError) as error:
        said = NOISE.sub("", " ".join(str(error).split()))
        return said.rstrip("., ") or type(error).__name__
    return ""


def selected_embeddings(table: EmbeddingTable, keys: np.ndarray, url: str) -> EmbeddingTable:
    """Bring a table up to date that holds the embeddings of selected images alone.

    Generation retrieves from it, and memorised copies are looked for in it, so that a model meets no image
    that it was not trained on.

    Args:
        table: The embeddings of all images.
        keys: Keys of the selected images, S16 [n].
        url: The table that holds theirs, which need not exist.

    Returns:
        That table.
    """
    schema = table.table.schema
    selected, there = Lookup(keys), create_table(url, schema)
    for batch in scan(there, ["id"], size=AT_ONCE):
        gone = selected.find(keys_of_ids(batch["id"])) < 0
        if gone.any():
            delete(url, one_of("id", batch["id"].filter(pa.array(gone)).to_pylist()))
    filling = Filling(table.url, table.version, url, AT_ONCE, AT_ONCE, tuple(schema.names))
    fill(filling, lambda: _Copying(schema), ComputeConfig(), "selected embeddings", only=keys)
    update_indexes(url)
    return EmbeddingTable(url)


class _Copying:
    """A worker that copies rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def prepare(self, batch: pa.Table) -> pa.Table:
        return batch

    def rows(self, batch: pa.Table) -> pa.Table:
        return batch
