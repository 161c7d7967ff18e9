"""The way back from a generator to the images it was trained on.

Knows what checkpoints and manifests record of their inputs; knows nothing of MLflow.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from clipgen_core import filesystem
from clipgen_core.data.tables import find_table
from clipgen_core.generation.parts import Parts
from clipgen_core.schema import LOCAL, TokenManifest, digest_of
from clipgen_core.storage import located, portable, root_of
from clipgen_core.training.checkpoint import Checkpoint


def lineage(parts: Parts) -> dict[str, str]:
    """What the generator was made from: for the report, and as tags of a registered version."""
    checkpoint = Checkpoint(parts.transformer)
    provenance, codes = checkpoint.provenance, checkpoint.codes
    started = {"started_from": checkpoint.started_from.url} if checkpoint.started_from else {}
    selected = {}
    if isinstance(codes, TokenManifest) and codes.where:
        selected = {"images_where": codes.where, "images_selected": str(codes.images_count)}
    return {
        "transformer": parts.transformer,
        "transformer_digest": provenance.digest,
        "tokens_digest": digest_of(provenance.record["tokens"]),
        "vqgan": parts.vqgan,
        "vqgan_digest": codes.vqgan_digest,
        "embeddings": parts.embeddings or "",
        "embeddings_version": str(parts.embeddings_version),
        "clip": parts.clip,
        "clip_key": parts.clip_key,
        "images": codes.images,
        "images_version": str(codes.images_version),
        "images_digest": codes.images_digest,
        **selected,
        **started,
        "order": parts.order,
        "sampling": parts.sampling.model_dump_json(),
        "configuration": json.dumps(provenance.config, indent=2),
    }


class Step(NamedTuple):
    """One input of a model. there: whether it is still available at its address."""

    name: str
    where: str
    digest: str
    there: bool


def way_back(tags: Mapping[str, str], root: str | None = None) -> list[Step]:
    """The inputs from the transformer back to the images.

    Args:
        tags: Of a registered version.
        root: Where the root lies now; where it lay when the version was registered if None.

    Returns:
        The steps.
    """
    if root:
        tags = located(portable(dict(tags), root_of(tags.get("transformer", ""))), root)
    steps = [
        Step(name, tags.get(name, ""), tags.get(f"{name}_digest", ""), filesystem.exists(tags.get(name, "")))
        for name in ("transformer", "vqgan")
    ]
    clip = tags.get("clip", "")
    local = clip.removeprefix(LOCAL)
    steps.append(Step("clip", clip, tags.get("clip_key", ""), local == clip or filesystem.exists(local)))
    for name in ("embeddings", "images"):
        url, version = tags.get(name, ""), tags.get(f"{name}_version", "")
        there = bool(url) and version.isdigit() and find_table(url, int(version)) is not None
        steps.append(Step(name, f"{url} @ version {version}", tags.get(f"{name}_digest", ""), there))
    return steps
