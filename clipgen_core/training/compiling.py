"""Compile a model for training by few graphs. Validation and sampling run without them: see `_Run.validate`.

A model of many equal blocks is compiled by one block ("regional compilation" in PyTorch's docs): the graph of
one serves all, so that a transformer of 24 layers takes as long to compile as one of a single layer. What
parallelises the model runs before and after the compiled part of a block, and checkpointing calls it again.
"""

import functools
from collections.abc import Sequence

import torch
from torch import nn


def compile_model(model: nn.Module) -> None:
    """Compile a model in place, after it was parallelised; its state keeps its keys.

    Args:
        model: The model; one without `blocks` is compiled as its own `compile` does it.
    """
    blocks: Sequence[nn.Module] = getattr(model, "blocks", ())
    if not blocks:
        model.compile()
        return
    # would split the graph of a block into DDP's buckets; gradients are exchanged block by block without it
    torch._dynamo.config.optimize_ddp = False
    forward = torch.compile(type(blocks[0]).forward, dynamic=False)
    for block in blocks:
        block.forward = functools.partial(forward, block)
