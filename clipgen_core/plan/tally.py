"""Live memory of a computation, also of one on fake tensors, which have shapes but no values.

Knows tensors and storages; knows no model.
"""

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from clipgen_core.models.attention import kernels_of_gpus

T = TypeVar("T")
FP32_ON_GPUS = {  # by autocast, but not on CPUs: of the functions that models and losses here call
    F.group_norm,
    F.layer_norm,
    F.rms_norm,
    F.interpolate,
    F.normalize,
    F.softmax,
    F.log_softmax,
    F.softplus,
    torch.softmax,
    torch.log_softmax,
    torch.sum,
    torch.pow,
    torch.exp,
    torch.log,
    Tensor.softmax,
    Tensor.log_softmax,
    Tensor.sum,
    Tensor.pow,
    Tensor.__pow__,
    Tensor.exp,
    Tensor.log,
    Tensor.norm,
}


class Tally(TorchDispatchMode):
    """Adds up the bytes of all storages that operations return, each once, for as long as they live.

    Attributes:
        live: Bytes at present.
        peak: The most at any time since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, tuple | list) else (result,):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._remove, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _remove(self, size: int) -> None:
        self.live -= size

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.live


class _GpuRules(TorchFunctionMode):
    """Lets autocast choose the types that it chooses on GPUs, and attention a fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            with self:  # for blocks that are recomputed; the public functions would end the mode again
                ones = torch.ones_like(args[0])
                return _engine_run_backward(
                    (args[0],), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        if func is F.scaled_dot_product_attention:
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                return func(*args, **kwargs)
        if func in FP32_ON_GPUS and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _to_fp32, (args, kwargs))
        return func(*args, **kwargs)


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


@contextmanager
def fake_tensors(gpu: bool) -> Iterator[Tally]:
    """Compute with tensors without values, as CPU or GPU do, and count their memory.

    PyTorch has no backward pass for fake tensors of a GPU that is not there. So the tensors are those of a
    CPU in both cases, and kernels and types those of the device.

    Args:
        gpu: Whether to compute as GPUs do.

    Yields:
        The count.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Tally() as tally:
        if gpu:
            with kernels_of_gpus(), _GpuRules():
                yield tally
        else:
            yield tally


def fake(thing: T, modules: Iterable[nn.Module]) -> T:
    """A copy of an object whose modules have fake tensors; call it within `fake_tensors`.

    Args:
        thing: An object that refers to the modules.
        modules: All modules in it, on any device, also `meta`. Flags among their buffers become true, such as
            that of a codebook that has started.

    Returns:
        The copy, with weights of the same shapes, types and memory formats.
    """
    copies: dict[int, Any] = {}
    for module in modules:
        for weight in module.parameters():
            if id(weight) not in copies:
                copies[id(weight)] = nn.Parameter(_empty_like(weight), requires_grad=weight.requires_grad)
        for buffer in module.buffers():
            flag = buffer.dtype is torch.bool and buffer.ndim == 0
            copies[id(buffer)] = torch.tensor(True) if flag else _empty_like(buffer)
    return copy.deepcopy(thing, copies)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
