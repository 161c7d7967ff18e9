"""An embeddings table: one L2-normalised vector an image, by one CLIP.

Knows the columns and the metadata of `schema.embeddings_schema`; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from clipgen_core.data.keys import joined
from clipgen_core.data.tables import nearest, open_table, scan_keys, vectors
from clipgen_core.errors import ClipgenError
from clipgen_core.storage import located, remedy, root_of

# A search for near-duplicates.
NEAR: dict[str, Any] = {"metric": "cosine", "nprobes": 16, "refine_factor": 10}


@dataclass(frozen=True)
class Nearest:
    """The rows nearest to a query, the nearest first: ids, cosine float64 [k], vectors float32 [k, d]."""

    ids: list[str]
    cosine: np.ndarray
    vectors: np.ndarray


class EmbeddingTable:
    """The embeddings of one CLIP.

    Args:
        url: The Lance table, local or an fsspec URL.
        version: The newest one if None.

    Raises:
        ClipgenError: No table is there.
    """

    def __init__(self, url: str, version: int | None = None) -> None:
        self.url, self.table = url, open_table(url, version)

    @property
    def clip(self) -> str:
        """The reference of the CLIP, as ClipEncoder takes it."""
        return located(self._metadata("clip"), root_of(self.url))

    @property
    def clip_key(self) -> str:
        """Names the CLIP's model and the digest of its weights."""
        return self._metadata("clip_key")

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return int(self.table.schema.field("vector").type.list_size)

    @property
    def version(self) -> int:
        return int(self.table.version)

    def keys(self) -> np.ndarray:
        """The keys of all images [n], in the table's order."""
        return joined(scan_keys(self.table))

    def vectors(self, rows: np.ndarray) -> pa.ChunkedArray:
        """Vectors by row number, as an Arrow fixed-size list of float32."""
        return self.table.take(rows.tolist(), columns=["vector"])["vector"]

    def nearest(self, query: np.ndarray, k: int) -> Nearest:
        """The `k` images with the highest cosine.

        Args:
            query: An embedding, float32 [d].
            k: How many.

        Returns:
            The images, the nearest first.

        Raises:
            ClipgenError: The table is empty.
        """
        if not self.table.count_rows():
            raise ClipgenError(f"{self.url} has no embeddings: read a folder of images with `clipgen embed`")
        found = nearest(self.table, query, k)
        return Nearest(found["id"].to_pylist(), found["cosine"].to_numpy(), vectors(found))

    def nearest_others(self, ids: Sequence[str], queries: np.ndarray) -> list[tuple[str, float]]:
        """The nearest other image of each of many images.

        It is looked for in few partitions of the vector index, however many there are. Near-duplicates lie in
        one partition or in adjacent ones; images that are less similar may have a nearer one elsewhere.

        Args:
            ids: Of the images [n].
            queries: Their embeddings, float32 [n, d].

        Returns:
            (id, cosine) of each; the image's own id and 0 where the table holds no other.
        """
        query = {"column": "vector", "q": queries, "k": 2, **NEAR}
        found = self.table.to_table(columns=["id", "_distance"], nearest=query)
        best: dict[int, tuple[str, float]] = {}
        columns = (found[name].to_pylist() for name in ("query_index", "id", "_distance"))
        for row, other, distance in zip(*columns, strict=True):
            if other != ids[row] and (row not in best or 1 - distance > best[row][1]):
                best[row] = (other, 1 - distance)
        return [best.get(row, (one, 0.0)) for row, one in enumerate(ids)]

    def _metadata(self, name: str) -> str:
        value = (self.table.schema.metadata or {}).get(name.encode())
        if value is None:
            raise ClipgenError(
                f"the table {self.url} does not say which CLIP it is of: {remedy('embeddings')}"
            )
        return str(value.decode())


def nearest_rows(embeddings: np.ndarray, k: int, chunk: int = 4096) -> np.ndarray:
    """The other rows with the highest cosine to each row, by exact search (n * n * d operations).

    Args:
        embeddings: float32 [n, d], rows of length 1.
        k: How many.
        chunk: Rows that are compared with all others at once.

    Returns:
        Row numbers, int64 [n, k].
    """
    rows = torch.from_numpy(embeddings)
    nearest = []
    for start in range(0, len(rows), chunk):
        cosine = rows[start : start + chunk] @ rows.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        nearest.append(cosine.topk(k, dim=1).indices)
    return torch.cat(nearest).numpy()
