"""Several processes, one training. Applied from outside: no model and no stage knows of it.

Started by torchrun (`torchrun --nproc-per-node 8 -m clipgen_core.cli train transformer ...`) or by anything
else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as Ray's TorchTrainer does.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def start() -> None:
    """Join the other processes, where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    if world_size() > 1:
        dist.barrier()


def spread(model: nn.Module, how: str) -> None:
    """Make `model`, in place, one of several copies (ddp) or the owner of a part of each weight (fsdp)."""
    if world_size() == 1:
        return
    if how == "ddp":
        replicate(model)
        return
    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    fully_shard(model)


def synchronise(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass exchanges gradients; not needed before a step's last one."""
    if world_size() > 1:
        model.set_requires_gradient_sync(wanted)  # type: ignore[operator]


def agreed(flag: Callable[[], bool], at: bool) -> bool:
    """Whether any process has raised its flag; several processes ask each other `at` some steps only."""
    if world_size() == 1:
        return flag()
    return at and mean({"flag": flag()})["flag"] > 0


def mean(values: Mapping[str, Any]) -> dict[str, float]:
    """Figures averaged over all processes."""
    own = torch.tensor([float(whole(v)) for v in values.values()], dtype=torch.float64)
    if world_size() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        own = own.to(device)
        dist.all_reduce(own)
        own = own.cpu() / world_size()
    return dict(zip(values, own.tolist(), strict=True))


def whole(value: Any) -> Any:
    """A state with every sharded tensor gathered; all processes must ask at once."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {k: whole(v) for k, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def like(value: Tensor, own: Tensor) -> Tensor:
    """A gathered tensor on the device of `own`, sharded as that is."""
    value = value.to(own.device)
    if isinstance(own, DTensor) and value.shape == own.shape:
        return distribute_tensor(value, own.device_mesh, own.placements)
    return value


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({k: like(v, own[k]) if k in own else v for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    parameters: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    state = {
        i: {k: like(v, p) if isinstance(v, Tensor) and v.ndim else v for k, v in saved["state"][i].items()}
        for i, p in enumerate(parameters)
        if i in saved["state"]
    }
    optimizer.load_state_dict({**saved, "state": state})
