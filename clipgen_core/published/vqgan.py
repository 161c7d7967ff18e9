"""Published VQGAN weights under our names.

taming     VQGAN of taming-transformers (arXiv:2012.09841): f16-1024, f16-16384
llamagen   vq_ds16 of LlamaGen (arXiv:2406.06525): 16,384 codes of 8 dimensions, l2-normalised
clip-gen   vqgan_coco.pt of the public CLIP-GEN implementation

The layers are named in the order in which a picture passes them, so that each of ours finds its
weights; what is left over or missing is an error. Shapes are read off the weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from clipgen_core.errors import ClipgenError
from clipgen_core.models.vqgan import Attention, Residual, Vqgan
from clipgen_core.settings.models import QuantizerConfig, VqganConfig

Kind = Literal["taming", "llamagen", "clip-gen"]
State = dict[str, Tensor]
IMAGE_SIZE = 256


@dataclass(frozen=True)
class Names:
    """How a publisher names layers. {i}: level, finest first; {c}: level, coarsest first; {j}: block of
    the level; {k}: layer counted over all levels of the encoder or decoder."""

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
    cosine: bool = False
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
        cosine=True,
    ),
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


def convert_vqgan(kind: Kind, state: State) -> tuple[VqganConfig, State]:
    """Config and weights in our names.

    Raises:
        ClipgenError: weights that are missing, left over or of another shape.
    """
    names, weights = NAMES[kind], Weights(state, kind)
    config = _shape(names, weights)
    model = Vqgan(config)
    paths = zip(_layers(model), _order(names, config), strict=True)
    made: State = {}
    for (path, layer), name in paths:
        made |= _layer(path, layer, name, names, weights)
    made |= _codebook(weights.take(names.codebook), names.cosine)
    weights.expect_nothing_left(names.ignored)
    model.load_state_dict(made)
    return config, model.state_dict()


class Weights:
    """A state dict that knows what has been taken from it."""

    def __init__(self, state: State, kind: str) -> None:
        self.left, self.kind = dict(state), kind

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.left:
            raise ClipgenError(f"these weights have no {name}: they are not those of {self.kind}")
        return tuple(self.left[name].shape)

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.left

    def take(self, name: str) -> Tensor:
        self.shape(name)
        return self.left.pop(name)

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        return self.take(f"{name}.weight"), self.take(f"{name}.bias")

    def expect_nothing_left(self, ignored: str) -> None:
        left = [name for name in self.left if not re.match(ignored, name)]
        if left:
            raise ClipgenError(
                f"{len(left)} of these weights have no place, {left[0]} among them: "
                f"they are not those of {self.kind}"
            )


def _shape(names: Names, weights: Weights) -> VqganConfig:
    """The VQGAN's configuration, from which weights there are and how large they are."""
    weights.shape("encoder.conv_in.weight")
    counts, channels, attended, layer = list[int](), list[int](), False, 0
    while True:
        level, block, width = len(counts), 0, 0
        while weights.has(inner := f"{names.res[0].format(i=level, j=block, k=layer)}.{names.residual[3]}"):
            width = weights.shape(f"{inner}.weight")[0]
            layer += 1
            if weights.has(names.attn[0].format(i=level, j=block, k=layer) + ".norm"):
                attended, layer = True, layer + 1
            block += 1
        counts.append(block)
        channels.append(width)
        if not weights.has(names.resample[0].format(i=level, k=layer)):
            break
        layer += 1
    codebook_size, code_dim = weights.shape(names.codebook)
    if len(set(counts)) != 1 or not counts[0]:
        raise ClipgenError(
            f"{counts} residual blocks a level are not those of {weights.kind}: check the kind"
        )
    return VqganConfig(
        image_size=IMAGE_SIZE,
        channels=tuple(channels),
        blocks=counts[0],
        decoder_blocks=counts[0] + 1,
        attention="coarsest" if attended else "middle",
        z_channels=weights.shape(f"{names.encoder_end[1]}.weight")[0],
        norm_epsilon=names.norm_epsilon,
        quantizer=QuantizerConfig(
            kind="cosine" if names.cosine else "ema",
            codebook_size=codebook_size,
            code_dim=code_dim,
            decay=0.99,
            revive_below=0.0,  # a large codebook's rarer codes are not dead
        ),
    )


def _layers(model: Vqgan) -> Iterator[tuple[str, nn.Module]]:
    """Our layers that have weights, in the order in which a picture passes them."""
    for part in ("encoder", "decoder"):
        for name, layer in getattr(model, part).named_children():
            if next(layer.parameters(), None) is not None:
                yield f"{part}.{name}", layer


def _order(names: Names, config: VqganConfig) -> Iterator[str]:
    """Their names of the same layers."""
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
        made: State = {}
        for own, theirs in pairs:
            made |= pair(f"{path}.{own}", weights.both(f"{name}.{theirs}"))
        return made
    if isinstance(layer, Attention):
        return _attention(path, name, weights)
    return pair(path, weights.both(name))


def _attention(path: str, name: str, weights: Weights) -> State:
    """Separate 1x1 convolutions for q, k and v (taming, LlamaGen) or nn.MultiheadAttention (CLIP-GEN)."""
    made = pair(f"{path}.norm", weights.both(f"{name}.norm"))
    if f"{name}.q.weight" in weights.left:
        q, k, v = (weights.both(f"{name}.{one}") for one in "qkv")
        inner = tuple(torch.cat(three) for three in zip(q, k, v, strict=True))
        outer = weights.both(f"{name}.proj_out")
    else:
        inner = weights.take(f"{name}.attn.in_proj_weight"), weights.take(f"{name}.attn.in_proj_bias")
        outer = weights.both(f"{name}.attn.out_proj")
    for own, (weight, bias) in (("qkv", inner), ("out", outer)):
        made |= pair(f"{path}.{own}", (weight.reshape(*weight.shape[:2], 1, 1), bias))
    return made


def _codebook(vectors: Tensor, cosine: bool) -> State:
    """A learned codebook as the state of one that follows running means."""
    if cosine:
        vectors = nn.functional.normalize(vectors, dim=-1)
    prefix = "quantizer.vq._codebook"
    return {
        f"{prefix}.initted": torch.tensor([True]),
        f"{prefix}.cluster_size": torch.ones(1, len(vectors)),
        f"{prefix}.embed_avg": vectors.unsqueeze(0).clone(),
        f"{prefix}.embed": vectors.unsqueeze(0).clone(),
    }


def pair(path: str, both: tuple[Tensor, Tensor]) -> State:
    return {f"{path}.weight": both[0], f"{path}.bias": both[1]}
