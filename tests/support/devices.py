"""A stand-in for a GPU: tensors of the CPU that say they lie on ``cuda:0``, or ``mps:0``, and refuse to meet others.

Inside ``StandIn()`` everything that is made on, or moved to, such a device is such a tensor. Triton's kernels run in
its interpreter. Only where a device is missing or mixed up shows, how often it is waited for, and on Apple's float64,
which it has not; the numbers are the CPU's.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from msat_det.methods.convert import spiking_network
from msat_det.methods.observe import observe

CUDA, MPS, CPU = torch.device("cuda:0"), torch.device("mps:0"), torch.device("cpu")
REAL = torch.cuda.is_available()  # then Triton compiles its kernels, which take no tensor of the CPU


class There(torch.Tensor):
    """A tensor on the stand-in. Without a mode around it, it is a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    _is_param = True  # for modules, which take no other tensors for parameters
    at = CUDA  # the one that there is
    device = property(lambda self: There.at)
    is_cuda = property(lambda self: There.at is CUDA)
    is_mps = property(lambda self: There.at is MPS)
    is_cpu = property(lambda self: False)


class StandIn(TorchFunctionMode):
    """Within it, ``device`` works, and mixing devices raises RuntimeError as PyTorch does.

    waits: what a CPU would have had to wait for a GPU for, so far, by the names of the operations: values that come
    from it, and sizes that depend on its values. copies: what it would have waited for on the way there, out of memory
    that is not pinned, unless asked not to block.
    """

    WAITING = frozenset(
        "item tolist cpu equal nonzero masked_select unique is_nonzero nms __bool__ __int__ __float__ __index__".split()
    )
    FREE = frozenset(  # of a CPU tensor and one there
        "copy_ to set_ __get__ __set__ is_pinned _has_compatible_shallow_copy_type".split()
    )

    def __init__(self, device: torch.device = CUDA) -> None:
        super().__init__()
        self.device = device
        self.waits: list[str] = []
        self.copies: list[str] = []

    def __enter__(self) -> "StandIn":
        if REAL:
            pytest.skip("a GPU is here: nothing stands in for it")
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        There.at = self.device
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        There.at = CUDA

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        self._note_wait(name, args, kwargs)
        if self.device is MPS and kwargs.get("non_blocking"):
            raise RuntimeError(f"{name}: it may read what is free by then (pytorch/pytorch issue 189690)")
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, There) for x in tensors)
        if name in ("numpy", "__array__") and there:
            raise TypeError("can't convert a tensor of the stand-in to numpy")
        indices = name in ("__getitem__", "__setitem__", "index_put", "index_put_")
        mixed = there and any(not isinstance(x, There) and x.dim() > 0 for x in (tensors[:1] if indices else tensors))
        if mixed and name not in self.FREE:
            shapes = [(tuple(x.shape), str(x.device)) for x in tensors]
            raise RuntimeError(f"{name}: tensors on several devices: {shapes}")
        if name == "pin_memory":
            return args[0]
        if name == "__deepcopy__" and there:
            return args[0].detach().clone().as_subclass(There)
        args, kwargs, wanted = self._asked(name, list(args), kwargs)
        whole = name in ("requires_grad_", "grad", "retain_grad", "backward")  # an alias would not do
        plain = pytree.tree_map(
            lambda x: x.as_subclass(Tensor) if type(x) is There and not whole else x, (tuple(args), kwargs)
        )
        result = func(*plain[0], **plain[1])
        if name == "requires_grad_":
            return result
        at = wanted if wanted is not None else self.device if there else CPU
        if name in ("__get__", "__set__", "data_ptr", "untyped_storage") and not isinstance(result, Tensor):
            return result
        if at.type not in ("cuda", "mps"):
            return result
        if self.device is MPS and any(
            isinstance(x, Tensor) and x.dtype == torch.float64 for x in pytree.tree_leaves(result)
        ):
            raise TypeError(f"{name}: the MPS framework doesn't support float64")
        return pytree.tree_map(lambda x: x.as_subclass(There) if isinstance(x, Tensor) else x, result)

    def _note_wait(self, name: str, args: tuple, kwargs: dict) -> None:
        first = bool(args) and isinstance(args[0], There)
        indices = pytree.tree_leaves(args[1:2]) if name in ("__getitem__", "__setitem__") else []
        by_values = any(isinstance(x, Tensor) and (x.dtype == torch.bool or not x.dim()) for x in indices)
        if first and (name in self.WAITING or by_values or (name == "where" and len(args) == 1)):
            self.waits.append(name)
        elif name in ("to", "tensor", "as_tensor", "new_tensor") and not kwargs.get("non_blocking"):
            here = self.device if first and name in ("to", "as_tensor") else CPU
            wanted = self._asked(name, list(args), dict(kwargs))[2] or (self.device if first else CPU)
            if self.device in (here, wanted) and here != wanted:
                (self.copies if here == CPU else self.waits).append(name)

    def _asked(self, name: str, args: list, kwargs: dict) -> tuple[list, dict, torch.device | None]:
        """The arguments for the CPU, and the device that they name."""
        wanted = None
        if name in ("cpu", "cuda"):
            wanted = {"cpu": CPU, "cuda": self.device}[name]
        for holder, keys in ((kwargs, ["device"]), (args, range(1, len(args)) if name == "to" else [])):
            for key in keys:
                value = holder[key] if holder is args else holder.get(key)
                if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "mps", "meta"):
                    value = torch.device(value)
                if isinstance(value, torch.device):
                    wanted = value
                    holder[key] = CPU if value.type in ("cuda", "mps") else value
                elif isinstance(value, Tensor) and name == "to":
                    wanted = self.device if isinstance(value, There) else CPU
        return args, kwargs, wanted


def check_taken(
    way: ModuleType,
    widths: tuple[int, int],
    precision: str,
    others: Sequence[str],
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> nn.Module:
    """A simulation on a device takes the second of three convolutions by ``way.convolution`` in this precision, none in
    the others, and its outputs are those of the CPU. widths: channels behind the first and the second. Returns the
    network, which lies on the CPU."""
    torch.manual_seed(0)
    first, second = widths
    net = nn.Sequential(nn.Conv2d(3, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU())
    net = net.append(nn.Conv2d(second, 2, 1)).eval().requires_grad_(False)
    expected = spiking_network("constant", {"gamma": 3}, observe(net, [x]), 2).run(x, 2)[2]
    calls: list[nn.Conv2d] = []
    convolution = way.convolution
    monkeypatch.setattr(way, "convolution", lambda *given: calls.append(given[0]) or convolution(*given))
    with StandIn():
        snn = spiking_network("constant", {"gamma": 3}, observe(net.to("cuda"), [x]), 2)
        for other in others:
            snn.precision = other
            snn.run(x, 2)
        assert calls == []
        snn.precision = precision
        found = snn.run(x, 2)[2].cpu()
    assert [(conv.in_channels, conv.out_channels) for conv in calls] == [widths]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    return net.cpu()
