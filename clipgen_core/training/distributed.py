"""Data-parallel training in several processes. Applied from outside: models and stages do not know of it.

torchrun starts the processes (`torchrun --nproc-per-node 8 -m clipgen_core.cli train-stage transformer ...`),
or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as Ray's TorchTrainer does.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from clipgen_core.device import default_device
from clipgen_core.errors import ClipgenError
from clipgen_core.settings.training import Precision

# NCCL ends a training whose processes wait longer for each other than 10 minutes by default. The others wait
# while the first one uploads a checkpoint; 13 GB take 17 minutes at 100 Mbit/s.
TIMEOUT = timedelta(hours=1)
CALLED = ("encode", "decode")  # methods besides `forward` that need a model's weights whole
T = TypeVar("T")


def start() -> None:
    """Join the process group if the environment names more than one process, each on a GPU of its own.

    Ray has made the group, and has chosen the current GPU of the thread that it calls.

    Raises:
        ClipgenError: This machine has more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()))
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=torch.device(default_device()))
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)


def _own_gpu(local_rank: int, gpus: int) -> int:
    """The number of this process's GPU; a launcher may have made one visible to each process."""
    if 1 < gpus <= local_rank:
        raise ClipgenError(
            f"process {local_rank} of this machine has no GPU, as there are {gpus}: start {gpus} processes"
        )
    return local_rank if gpus > 1 else 0


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


def spread(model: nn.Module, how: str, precision: Precision = "fp32") -> None:
    """Parallelise a model in place; does nothing in a single process.

    Args:
        model: The model; FSDP shards each of its `blocks` by itself, where it has them.
        how: "ddp" keeps a replica in every process, "fsdp" shards each weight over all processes.
        precision: In "bf16", FSDP exchanges the weights of the blocks and computes the blocks in bf16; their
            gradients are added up over the processes in fp32.
    """
    if world_size() == 1:
        return
    if how == "ddp":
        replicate(model, gradient_as_bucket_view=True)
        return
    for weight in model.parameters():
        weight.data = weight.data.contiguous()  # FSDP2 shards no other memory format, such as channels last
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mp_policy=policy)
    fully_shard(model)
    for method in CALLED:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


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
    own = torch.tensor(list(numbers([values])[0].values()), dtype=torch.float64)
    if world_size() > 1:
        own = own.to(_talks_by())
        dist.all_reduce(own)
        own = own.cpu() / world_size()
    return dict(zip(values, own.tolist(), strict=True))


def numbers(rows: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
    """Metrics as numbers, for which the CPU waits for the device once; every process must call this."""
    flat = [gather(value) for row in rows for value in row.values()]
    tensors = [value.detach().reshape(()).double() for value in flat if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    values = iter([next(read) if isinstance(value, Tensor) else float(value) for value in flat])
    return [{name: next(values) for name in row} for row in rows]


def of_first(value: T) -> T:
    """The value that the first process has, in all processes, each of which must call this."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=_talks_by())
    return values[0]


def _talks_by() -> torch.device:
    """Where the tensors of a message between processes are."""
    return torch.device(default_device() if dist.get_backend() == "nccl" else "cpu")


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
    """A tensor whole, if it is sharded; every process must call this. Anything else is returned as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def collect(state: Any) -> Any:
    """A copy of a state in the first process's memory; every process must call this.

    Sharded tensors are gathered one by one, so that no device holds all of them.

    Args:
        state: Tensors and other values, in mappings and lists at any depth.

    Returns:
        The same structure, with tensors on the CPU; in the other processes they are empty.
    """
    if isinstance(state, Mapping):
        return {k: collect(v) for k, v in state.items()}
    if isinstance(state, list):
        return [collect(v) for v in state]
    if not isinstance(state, Tensor):
        return state
    whole = gather(state).detach()
    return whole.to("cpu", copy=True) if rank() == 0 else torch.empty(0)


def not_finite(states: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """The names of weights that are not finite, as far as this process has their shards."""
    named = [(key, value) for state in states for key, value in state.items()]
    own = (value.to_local() if isinstance(value, DTensor) else value for _, value in named)
    finite = torch.stack([value.isfinite().all() for value in own]).tolist()
    return [key for (key, _), fine in zip(named, finite, strict=True) if not fine]


def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a gathered state into a module that may be sharded.

    Args:
        module: The module; its own load_state_dict pre-hooks run first and may rename keys.
        state: The whole tensors, as `collect(module.state_dict())` returns them.
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
        saved: The state, as `collect(optimizer.state_dict())` returns it.
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
