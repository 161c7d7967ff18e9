"""Converts published transformers to state dicts of `Transformer`.

clip-gen   gpt_coco.pt of the public CLIP-GEN implementation: GPT-2's blocks, conditioned on CLIP embeddings
llamagen   the transformers of LlamaGen (arXiv:2406.06525), conditioned on classes (c2i) or on texts (t2i)

LlamaGen's conditions are not imported. The projection of the CLIP embedding, which takes their place, and the
null embedding start as in a new model.
"""

import re

import torch
from torch import Tensor

from clipgen_core.errors import ClipgenError
from clipgen_core.models.shapes import TRANSFORMERS
from clipgen_core.models.transformer import Transformer
from clipgen_core.published.files import State
from clipgen_core.published.weights import Weights, concatenated, pair
from clipgen_core.settings.models import TransformerConfig

# heads by width and number of blocks, of all published transformers: no weight has their shape
HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 36): 20,
    (1536, 48): 24,
    (2048, 22): 32,
    (2560, 48): 40,
    (3200, 24): 32,
    (4096, 32): 32,
}


def convert_clip_gen(
    weights: Weights, grid: int, heads: int | None = None
) -> tuple[TransformerConfig, State]:
    """Convert the transformer of the public implementation, a GPT.

    Args:
        weights: Its weights.
        grid: Side of the VQGAN's grid.
        heads: Attention heads; those of the published shape if None.

    Returns:
        The configuration and the state dict of the same `Transformer`.

    Raises:
        ClipgenError: Weights are missing, unexpected, not finite or of another shape, or the number of heads
            is not known.
    """
    codebook_size, width = weights.shape("tok_emb.weight")
    layers = _layers(weights, "blocks")
    shape = {"width": width, "layers": layers, "heads": heads or _heads(weights, width, layers)}
    config = TransformerConfig.model_validate(TRANSFORMERS["paper"].model_dump() | shape)
    dim = weights.shape("cond_proj.weight")[1]
    converted: State = {
        "codes.weight": weights.take("tok_emb.weight"),
        "position_embedding": weights.take("pos_emb")[0],
        "condition.weight": weights.take("cond_proj.weight")
        / dim**0.5,  # our Transformer scales the embedding
        "condition.bias": weights.take("cond_proj.bias"),
        **pair("norm", weights.both("norm")),
        **pair("head", weights.both("head")),
    }
    for i in range(layers):
        theirs, ours = f"blocks.{i}.encoder", f"blocks.{i}"
        for name in ("norm1", "norm2"):
            converted |= pair(f"{ours}.{name}", weights.both(f"{theirs}.{name}"))
        converted[f"{ours}.attention.qkv.weight"] = weights.take(f"{theirs}.self_attn.in_proj_weight")
        converted[f"{ours}.attention.qkv.bias"] = weights.take(f"{theirs}.self_attn.in_proj_bias")
        converted |= pair(f"{ours}.attention.out", weights.both(f"{theirs}.self_attn.out_proj"))
        converted |= pair(f"{ours}.feed_forward.up", weights.both(f"{theirs}.linear1"))
        converted |= pair(f"{ours}.feed_forward.out", weights.both(f"{theirs}.linear2"))
    weights.expect_all_taken(r"blocks\.\d+\.mask")
    return config, weights.fit(Transformer(config, codebook_size, grid, dim), converted)


def convert_llamagen(
    weights: Weights, grid: int, dim: int, heads: int | None = None
) -> tuple[TransformerConfig, State]:
    """Convert a transformer of LlamaGen, without its condition.

    Given the same first token, the converted transformer computes the published logits.

    Args:
        weights: Its weights.
        grid: Side of the grid of codes.
        dim: Width of the CLIP embedding.
        heads: Attention heads; those of the published shape if None.

    Returns:
        The configuration and the state dict of the `Transformer`. Its projection of the CLIP embedding is
        random, and the same at every call.

    Raises:
        ClipgenError: Weights are missing, unexpected, not finite or of another shape, or the number of heads
            is not known.
    """
    codebook_size, width = weights.shape("tok_embeddings.weight")
    layers = _layers(weights, "layers")
    config = TransformerConfig(
        width=width,
        layers=layers,
        heads=heads or _heads(weights, width, layers),
        dropout=TRANSFORMERS["b"].dropout,
        qk_norm=False,
        details="llamagen",
    )
    converted: State = {
        "codes.weight": weights.take("tok_embeddings.weight"),
        "norm.weight": weights.take("norm.weight"),
        "head.weight": weights.take("output.weight"),
    }
    for i in range(layers):
        theirs, ours = f"layers.{i}", f"blocks.{i}"
        converted[f"{ours}.norm1.weight"] = weights.take(f"{theirs}.attention_norm.weight")
        converted[f"{ours}.norm2.weight"] = weights.take(f"{theirs}.ffn_norm.weight")
        qkv = weights.take(f"{theirs}.attention.wqkv.weight")
        converted[f"{ours}.attention.qkv.weight"] = _halves(qkv, width, config.heads)
        converted[f"{ours}.attention.out.weight"] = weights.take(f"{theirs}.attention.wo.weight")
        gate_and_up = (f"{theirs}.feed_forward.{name}.weight" for name in ("w1", "w3"))
        converted[f"{ours}.feed_forward.gate_and_up.weight"] = concatenated(weights, *gate_and_up)
        converted[f"{ours}.feed_forward.out.weight"] = weights.take(f"{theirs}.feed_forward.w2.weight")
    weights.expect_all_taken(r"cls_embedding\.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(config, codebook_size, grid, dim)
    return config, weights.fit(model, converted)


def _layers(weights: Weights, prefix: str) -> int:
    found = (re.match(rf"{prefix}\.(\d+)\.", name) for name in weights.remaining)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _heads(weights: Weights, width: int, layers: int) -> int:
    if (width, layers) not in HEADS:
        raise ClipgenError(
            f"{weights.file} has {layers} blocks of width {width}, which is no published size, and its "
            "weights do not tell the number of heads: give it as --heads"
        )
    return HEADS[width, layers]


def _halves(qkv: Tensor, width: int, heads: int) -> Tensor:
    """Reorder the rows of queries and keys: LlamaGen rotates neighbours, and we rotate halves of a head."""
    if len(qkv) != 3 * width:
        return qkv  # keys shared by heads, whose shape is refused
    per_head = qkv.view(3, heads, -1, 2, width)
    halves = per_head[:2].transpose(2, 3)
    return torch.cat([halves.reshape(2 * width, width), qkv[2 * width :]])
