"""Converts published VQGAN weights to state dicts of `Vqgan`.

taming     VQGAN of taming-transformers (arXiv:2012.09841): f16-1024, f16-16384
llamagen   vq_ds16 and vq_ds8 of LlamaGen (arXiv:2406.06525): 16,384 codes of 8 dimensions, L2-normalised
ibq        IBQ of SEED-Voken (arXiv:2412.02692): taming's layers, codes by the largest inner product
clip-gen   vqgan_coco.pt of the public CLIP-GEN implementation

The published layers are listed in the order in which they are applied, and paired with the layers of `Vqgan`
in the same order. Missing and unexpected weights are errors. The weights' shapes give the configuration,
except for the image size: no layer depends on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.models.vqgan import Attention, Residual, Vqgan
from clipgen_core.published.files import State
from clipgen_core.published.weights import Weights, pair
from clipgen_core.settings.models import QuantizerConfig, VqganConfig

Kind = Literal["taming", "llamagen", "ibq", "clip-gen"]
IMAGE_SIZE = 256
LARGEST = 2048  # attention compares all positions of the grid with each other


@dataclass(frozen=True)
class Names:
    """How a publisher names layers, as templates.

    In a template, {i} is the level, finest first; {c} the level, coarsest first; {j} the block of the level;
    and {k} the index of the layer over all levels of the encoder or decoder.
    """

    res: tuple[str, str]
    attn: tuple[str, str]
    resample: tuple[str, str]
    middle: tuple[str, str, str]
    encoder_end: tuple[str, str, str]
    decoder_start: tuple[str, str]
    decoder_end: tuple[str, str]
    residual: tuple[str, str, str, str, str]
    codebook: str
    ignored: str
    quantizer: Literal["ema", "cosine", "ibq"] = "ema"
    norm_epsilon: float = 1e-6


TAMING = Names(
    res=("encoder.down.{i}.block.{j}", "decoder.up.{i}.block.{j}"),
    attn=("encoder.down.{i}.attn.{j}", "decoder.up.{i}.attn.{j}"),
    resample=("encoder.down.{i}.downsample.conv", "decoder.up.{i}.upsample.conv"),
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    encoder_end=("encoder.norm_out", "encoder.conv_out", "quant_conv"),
    decoder_start=("post_quant_conv", "decoder.conv_in"),
    decoder_end=("decoder.norm_out", "decoder.conv_out"),
    residual=("norm1", "conv1", "norm2", "conv2", "nin_shortcut"),
    codebook="quantize.embedding.weight",
    ignored=r"loss\.",
)
NAMES: dict[str, Names] = {
    "taming": TAMING,
    "llamagen": replace(
        TAMING,
        res=("encoder.conv_blocks.{i}.res.{j}", "decoder.conv_blocks.{c}.res.{j}"),
        attn=("encoder.conv_blocks.{i}.attn.{j}", "decoder.conv_blocks.{c}.attn.{j}"),
        resample=("encoder.conv_blocks.{i}.downsample.conv", "decoder.conv_blocks.{c}.upsample.conv"),
        middle=("mid.0", "mid.1", "mid.2"),
        ignored=r"quantize\.codebook_used",
        quantizer="cosine",
    ),
    "ibq": replace(TAMING, quantizer="ibq"),
    "clip-gen": Names(
        res=("encoder.down.{k}", "decoder.up.{k}"),
        attn=("encoder.down.{k}", "decoder.up.{k}"),
        resample=("encoder.down.{k}.conv", "decoder.up.{k}.conv"),
        middle=("mid.0", "mid.1", "mid.2"),
        encoder_end=("encoder.final.0", "encoder.final.2", "encoder.final.3"),
        decoder_start=("decoder.quant_conv_in", "decoder.conv_in"),
        decoder_end=("decoder.final.0", "decoder.final.2"),
        residual=("block.0", "block.2", "block.3", "block.6", "shortcut"),
        codebook="quantizer.embedding.weight",
        ignored=r"discriminator\.",
        norm_epsilon=1e-5,
    ),
}


def convert_vqgan(kind: Kind, weights: Weights, image_size: int = IMAGE_SIZE) -> tuple[VqganConfig, State]:
    """Convert published weights.

    Args:
        kind: Who published them.
        weights: The published weights.
        image_size: Side of the images that the VQGAN is for, in pixels.

    Returns:
        The configuration and the state dict of the same `Vqgan`.

    Raises:
        ClipgenError: Weights are missing, unexpected, not finite or of another shape, or the image size does
            not fit them.
    """
    if not 0 < image_size <= LARGEST:
        raise ClipgenError(f"image_size {image_size} is not from 1 to {LARGEST} pixels: choose one that is")
    names = NAMES[kind]
    config = _shape(names, weights, image_size)
    model = Vqgan(config)
    converted: State = {}
    for (path, layer), name in zip(_layers(model), _order(names, config), strict=True):
        converted |= _layer(path, layer, name, names, weights)
    converted |= _codebook(weights.take(names.codebook), names.quantizer)
    weights.expect_all_taken(names.ignored)
    return config, weights.fit(model, converted)


def _shape(names: Names, weights: Weights, image_size: int) -> VqganConfig:
    """Derive the configuration from the names and shapes of the weights."""
    if (colours := weights.shape("encoder.conv_in.weight")[1]) != 3:
        raise ClipgenError(f"{weights.file} is for images of {colours} channels: choose one for RGB images")
    counts, channels, attended = _counts(names, weights)
    if len(set(counts)) != 1 or not counts[0] or attended not in ([], [len(counts) - 1]):
        raise ClipgenError(
            f"{weights.file} has levels of {counts} residual blocks and attention in levels {attended}: "
            "clipgen imports VQGANs with equal levels and attention in the coarsest one alone"
        )
    codebook_size, code_dim = weights.shape(names.codebook)
    return VqganConfig(
        image_size=image_size,
        channels=tuple(channels),
        blocks=counts[0],
        decoder_blocks=counts[0] + 1,
        attention="coarsest" if attended else "middle",
        z_channels=weights.shape(f"{names.encoder_end[1]}.weight")[0],
        norm_epsilon=names.norm_epsilon,
        quantizer=QuantizerConfig(
            kind=names.quantizer,
            codebook_size=codebook_size,
            code_dim=code_dim,
            decay=0.99,
            replace_below=0.0,  # rare codes of a large codebook are not dead
        ),
    )


def _counts(names: Names, weights: Weights) -> tuple[list[int], list[int], list[int]]:
    """The residual blocks and the channels of each level of the encoder, and the levels with attention."""
    counts, channels, attended, layer = list[int](), list[int](), list[int](), 0
    while True:
        level, block, width = len(counts), 0, 0
        while weights.has(inner := f"{names.res[0].format(i=level, j=block, k=layer)}.{names.residual[3]}"):
            width = weights.shape(f"{inner}.weight")[0]
            layer += 1
            if weights.has(names.attn[0].format(i=level, j=block, k=layer) + ".norm"):
                attended, layer = sorted({*attended, level}), layer + 1
            block += 1
        counts.append(block)
        channels.append(width)
        if not weights.has(names.resample[0].format(i=level, k=layer)):
            return counts, channels, attended
        layer += 1


def _layers(model: Vqgan) -> Iterator[tuple[str, nn.Module]]:
    """The layers of `Vqgan` that have weights, by their paths, in the order in which they are applied."""
    for part in ("encoder", "decoder"):
        for name, layer in getattr(model, part).named_children():
            if next(layer.parameters(), None) is not None:
                yield f"{part}.{name}", layer


def _order(names: Names, config: VqganConfig) -> Iterator[str]:
    """The published names of the same layers."""
    yield "encoder.conv_in"
    yield from _levels(names, config, 0)
    yield from (f"encoder.{name}" for name in names.middle)
    yield from names.encoder_end
    yield from names.decoder_start
    yield from (f"decoder.{name}" for name in names.middle)
    yield from _levels(names, config, 1)
    yield from names.decoder_end


def _levels(names: Names, config: VqganConfig, part: int) -> Iterator[str]:
    levels, layer = len(config.channels), 0
    order = range(levels) if part == 0 else reversed(range(levels))
    for count, i in enumerate(order):
        if count:
            before = i - 1 if part == 0 else i + 1
            yield names.resample[part].format(i=before, c=levels - 1 - before, k=layer)
            layer += 1
        for j in range(config.blocks if part == 0 else config.decoder_blocks):
            yield names.res[part].format(i=i, c=levels - 1 - i, j=j, k=layer)
            layer += 1
            if config.attention == "coarsest" and i == levels - 1:
                yield names.attn[part].format(i=i, c=levels - 1 - i, j=j, k=layer)
                layer += 1


def _layer(path: str, layer: nn.Module, name: str, names: Names, weights: Weights) -> State:
    if isinstance(layer, Residual):
        ours = ("norm1", "conv1", "norm2", "conv2", "skip")
        pairs = list(zip(ours, names.residual, strict=True))
        if isinstance(layer.skip, nn.Identity):
            pairs.pop()
        converted: State = {}
        for own, theirs in pairs:
            converted |= pair(f"{path}.{own}", weights.both(f"{name}.{theirs}"))
        return converted
    if isinstance(layer, Attention):
        return _attention(path, name, weights)
    return pair(path, weights.both(name))


def _attention(path: str, name: str, weights: Weights) -> State:
    """Separate 1x1 convolutions for q, k and v (taming, LlamaGen) or nn.MultiheadAttention (CLIP-GEN)."""
    converted = pair(f"{path}.norm", weights.both(f"{name}.norm"))
    if f"{name}.q.weight" in weights.remaining:
        q, k, v = (weights.both(f"{name}.{one}") for one in "qkv")
        inner = tuple(torch.cat(three) for three in zip(q, k, v, strict=True))
        outer = weights.both(f"{name}.proj_out")
    else:
        inner = weights.take(f"{name}.attn.in_proj_weight"), weights.take(f"{name}.attn.in_proj_bias")
        outer = weights.both(f"{name}.attn.out_proj")
    for own, (weight, bias) in (("qkv", inner), ("out", outer)):
        converted |= pair(f"{path}.{own}", (weight.reshape(*weight.shape[:2], 1, 1), bias))
    return converted


def _codebook(vectors: Tensor, quantizer: str) -> State:
    """A learned codebook as the state of a quantizer."""
    if quantizer == "ibq":
        return {"quantizer.vq.embedding.weight": vectors}
    if quantizer == "cosine":
        vectors = nn.functional.normalize(vectors, dim=-1)
    prefix = "quantizer.vq._codebook"
    return {
        f"{prefix}.initted": torch.tensor(True),
        f"{prefix}.cluster_size": torch.ones(1, len(vectors)),
        f"{prefix}.embed_avg": vectors.unsqueeze(0).clone(),
        f"{prefix}.embed": vectors.unsqueeze(0).clone(),
    }
