"""Files that cannot be referenced, and images that are gone: said together, not one after another."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipgen_core.data.images import ImageTable
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import Storage
from tests.conftest import COLOURS
from tests.core.data.test_referenced import PNG, RED, ingest, write


def test_files_that_cannot_be_referenced_are_named_together(storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"1.png": RED})
    for number in range(5):
        pq.write_table(pa.table({"image": [RED]}), source / f"{number}.parquet")
    for name, compression in (("deflated", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(source / f"{name}.zip", "w", compression) as archive:
            archive.writestr("1.png", RED)
    said = (
        r"6 files cannot be referenced, .*0\.parquet, \S*1\.parquet, \S*2\.parquet and 3 more\): unpack them"
    )
    with pytest.raises(ClipgenError, match=said):
        ingest(source, storage)


def test_images_that_are_gone_are_named_together(storage: Storage, tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{i}.png": PNG[colour] for i, colour in enumerate(COLOURS)})
    ingest(source, storage)
    for number in range(5):
        (source / f"{number}.png").unlink()
    with pytest.raises(ClipgenError) as error:
        ImageTable(storage.images).images(np.arange(len(COLOURS)))
    said = str(error.value)
    assert said.startswith(f"5 images of {storage.images} cannot be read again: ") and "and 2 more: " in said
    assert said.count(".png: No such file or directory") == 3
