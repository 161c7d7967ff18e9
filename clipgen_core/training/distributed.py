"""Data-parallel training in several processes. Applied from outside: models and stages do not know of it.

torchrun starts the processes (`torchrun --nproc-per-node 8 -m clipgen_core.cli train transformer ...`), or
anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as Ray's TorchTrainer does.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def start() -> None:
    """Join the process group if the environment names more than one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """The number of this process, 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every process has called this."""
    if world_size() > 1:
        dist.barrier()


def sharded(how: str) -> bool:
    """Whether `spread` shards weights by this setting; a weight without dimensions cannot be sharded."""
    return how == "fsdp" and world_size() > 1


def spread(model: nn.Module, how: str) -> None:
    """Parallelise a model in place; does nothing in a single process.

    Args:
        model: The model; FSDP shards each of its `blocks` by itself, where it has them.
        how: "ddp" keeps a replica in every process, "fsdp" shards each weight over all processes.
    """
    if world_size() == 1:
        return
    if how == "ddp":
        replicate(model)
        return
    for weight in model.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 shards no other memory format, such as channels last
    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    fully_shard(model)


def synchronise(model: nn.Module, enabled: bool) -> None:
    """Enable or disable the exchange of gradients in the next backward pass.

    Args:
        model: The parallelised model.
        enabled: False for every backward pass of a step but its last one.
    """
    if world_size() > 1:
        model.set_requires_gradient_sync(enabled)  # type: ignore[operator]


def agreed(flag: Callable[[], bool], at: bool) -> bool:
    """Whether `flag` is true in any process.

    Args:
        flag: This process's answer.
        at: Whether the processes compare their answers at this step; this costs a message between them,
            so it is done at some steps only. A single process needs no comparison.

    Returns:
        The same value in all processes; False at steps without a comparison.
    """
    if world_size() == 1:
        return flag()
    return at and mean({"flag": flag()})["flag"] > 0


def mean(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Metrics averaged over all processes, each of which must call this."""
    own = torch.tensor([float(gather(v)) for v in values.values()], dtype=torch.float64)
    if world_size() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        own = own.to(device)
        dist.all_reduce(own)
        own = own.cpu() / world_size()
    return dict(zip(values, own.tolist(), strict=True))


def whole_batch(parts: Sequence[Tensor]) -> Tensor:
    """The rows of a step's whole batch in its order, in every process; each of them must call this.

    Args:
        parts: This process's rows, one tensor [n, ...] of the same shape for each backward pass.

    Returns:
        [processes * passes * n, ...]
    """
    own = torch.stack(list(parts))
    if world_size() > 1:
        every = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(every, own)
        own = torch.cat(every)
    return own.transpose(0, 1).flatten(0, 1)  # a pass holds every so many rows: see `Share`


def gather(value: Any) -> Any:
    """A state with every sharded tensor gathered, at any depth; every process must call this."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {k: gather(v) for k, v in value.items()}
    return [gather(v) for v in value] if isinstance(value, list) else value


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a gathered state into a module that may be sharded.

    Args:
        module: The module; its own load_state_dict pre-hooks run first and may rename keys.
        state: The whole tensors, as `gather(module.state_dict())` returns them.
    """
    own = module.state_dict()

    def shard(_module: nn.Module, loaded: dict[str, Any], *_: object) -> None:
        for key in own:  # in one order in all processes, which exchange the parts
            if key in loaded:
                loaded[key] = _shard_like(own[key], loaded[key])

    hook = module.register_load_state_dict_pre_hook(shard)
    try:
        module.load_state_dict(state)
    finally:
        hook.remove()


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a gathered state into an optimizer whose parameters may be sharded.

    Args:
        optimizer: The optimizer, which must have the same parameters in the same order.
        saved: The state, as `gather(optimizer.state_dict())` returns it.
    """
    parameters: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    state = {
        i: {
            k: _shard_like(p, v) if isinstance(v, Tensor) and v.ndim else v
            for k, v in saved["state"][i].items()
        }
        for i, p in enumerate(parameters)
        if i in saved["state"]
    }
    optimizer.load_state_dict({**saved, "state": state})


def _shard_like(own: Tensor, value: Tensor) -> Tensor:
    """A gathered tensor on the device of `own`, sharded in the same way if it has the same shape.

    A single number takes the shape of `own`, since it has a dimension where it was trained in shards.
    """
    value = value.to(own.device)
    if own.numel() == value.numel() == 1:
        value = value.reshape(own.shape)
    if isinstance(own, DTensor) and value.shape == own.shape:
        return distribute_tensor(value, own.device_mesh, own.placements)
    return value
