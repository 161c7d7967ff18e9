"""Estimates what a training will need before it starts: `clipgen plan FOLDER`.

Counts the files and decodes a sample, times some steps of each training on this machine, and counts their
memory on tensors without values. The times leave out data loading and validations, so they are lower bounds.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import open_clip
import torch

from clipgen_core.device import default_device, fast_dtype
from clipgen_core.models.clip import ClipEncoder
from clipgen_core.plan.source import Survey, survey
from clipgen_core.plan.speed import Speed, measure
from clipgen_core.plan.verdict import Verdict, judge
from clipgen_core.progress import track
from clipgen_core.recipes import Recipe
from clipgen_core.schema import code_type
from clipgen_core.settings import clip

TRAINED = "trained"
ID_BYTES = 64
UNKNOWN = Speed(0.0, 0.0, 0.0, 0.0, 0.0)
TRAININGS = {"vqgan_checkpoint": "vqgan", "transformer_checkpoint": "transformer"}


@dataclass(frozen=True)
class Line:
    """The needs of one stage.

    Attributes:
        stage: Name of its asset.
        disk: Bytes that it writes.
        memory: Bytes of device memory.
        hours: Hours on this machine, at least; 0 if another GPU is counted for.
    """

    stage: str
    disk: float = 0.0
    memory: float = 0.0
    hours: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The estimate.

    Attributes:
        source: What the source holds.
        device: Name of the device that is counted for: this machine's, on which the hours were measured, or a
            GPU by its memory.
        memory: Bytes of the device whose memory the verdicts are about.
        lines: The needs of each stage, in the pipeline's order.
        verdicts: Of each training, by the name of its asset.
    """

    source: Survey
    device: str
    memory: float
    lines: tuple[Line, ...]
    verdicts: Mapping[str, Verdict]


def plan(source: str, recipe: Recipe, reference: str | None = None, gpu_bytes: float | None = None) -> Plan:
    """Estimate the needs of a training; writes nothing.

    Args:
        source: Folder of the images, a local path or an fsspec URL.
        recipe: The configuration of all stages.
        reference: The CLIP to use; "trained": one like the recipe's. By default of the shape ViT-B/32.
        gpu_bytes: Memory of another GPU to count for, whose speed is not known; by default that of this
            machine's device.

    Returns:
        The estimate.

    Raises:
        ClipgenError: The source has no file, or no image of the sample can be used.
    """
    seen = survey(source, recipe.images)
    encoder = _encoder(reference, recipe)
    gpu = gpu_bytes is not None or torch.cuda.is_available()
    memory, here = gpu_bytes or device_bytes(), gpu_bytes is None
    speed = None
    with track("measuring", here + len(TRAININGS), "models") as meter:
        if here:
            speed = measure(recipe, encoder, reference == TRAINED)
            meter.advance()
        verdicts = {}
        for asset, stage in TRAININGS.items():
            verdicts[asset] = judge(stage, recipe, encoder, memory=memory, gpu=gpu)
            meter.advance()
    lines = _lines(recipe, encoder, seen, speed, verdicts)
    device = device_name() if here else f"a GPU of {memory / 1e9:.3g} GB"
    return Plan(seen, device, memory, tuple(lines), verdicts)


def _encoder(reference: str | None, recipe: Recipe) -> ClipEncoder:
    if reference is None:
        return UntrainedClip()
    return UntrainedClip(recipe.clip) if reference == TRAINED else ClipEncoder(reference)


def _lines(
    recipe: Recipe, encoder: ClipEncoder, seen: Survey, speed: Speed | None, verdicts: Mapping[str, Verdict]
) -> list[Line]:
    reading = seen.images * seen.seconds / recipe.images.readers / 3600 if speed else 0.0
    speed = speed or UNKNOWN
    rows, shape, views = seen.images * seen.usable, recipe.vqgan.model, recipe.tokens.views
    row = 4 * encoder.dim + ID_BYTES
    codes = views * shape.grid**2 * code_type(shape.quantizer.codebook_size).bit_width / 8
    needs = {asset: verdict.need for asset, verdict in verdicts.items()}
    vqgan, transformer = recipe.vqgan.train, recipe.transformer.train
    clip = recipe.clip.train
    own_clip = Line("clip_checkpoint", hours=clip.steps * clip.batch_size * speed.clip / 3600)
    return [
        *([own_clip] if speed.clip else []),
        Line("raw_images", 0.0 if recipe.images.store == "references" else seen.size, 0.0, reading),
        Line("clip_embeddings", rows * row, needs["vqgan_checkpoint"].frozen, rows * speed.embed / 3600),
        Line(
            "vqgan_checkpoint",
            disk=vqgan.checkpoint_bytes(needs["vqgan_checkpoint"].parameters),
            memory=needs["vqgan_checkpoint"].total,
            hours=vqgan.steps * vqgan.batch_size * speed.vqgan / 3600,
        ),
        Line(
            "token_shards",
            disk=rows * (2 * codes + ID_BYTES + views * row),
            memory=needs["vqgan_checkpoint"].weights,
            hours=rows * views * speed.encode / 3600,
        ),
        Line(
            "transformer_checkpoint",
            disk=transformer.checkpoint_bytes(needs["transformer_checkpoint"].parameters),
            memory=needs["transformer_checkpoint"].total,
            hours=transformer.steps * transformer.batch_size * speed.transformer / 3600,
        ),
    ]


class UntrainedClip(ClipEncoder):
    """A CLIP without weights, for its speed and size; it reads no images.

    Args:
        config: Of a CLIP that a recipe trains; the architecture ViT-B/32 if None.
    """

    def __init__(self, config: clip.Config | None = None) -> None:
        self.reference, self.device = "untrained", torch.device(default_device())
        self.dtype = fast_dtype(self.device)
        shape = config.open_clip_config() if config else open_clip.get_model_config("ViT-B-32")
        self.model = open_clip.CLIP(**shape).eval().requires_grad_(False).to(self.device)
        self.visual = self.model.visual
        self.visual.image_mean, self.visual.image_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        self.preprocess = self.tokenizer = None


def device_name() -> str:
    """Name of the GPU, or the number of CPU threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def device_bytes() -> int:
    """Memory of the GPU, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties().total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
