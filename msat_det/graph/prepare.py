"""A network made ready to be traced: a copy in float32 and evaluation mode, wrappers taken off, weights plain."""

import copy
import pickle
from collections.abc import Iterable
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from msat_det.base.checks import present
from msat_det.base.errors import InputError
from msat_det.graph.inputs import MISFIT, reason
from msat_det.graph.scripted import in_python

# Old-style reparametrisations: hooks that make the weight anew before every forward.
_MAKERS = (WeightNorm, SpectralNorm, BasePruningMethod)
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Where PyTorch has modules with weights of integers, and those that watch or round activations for them.
_QUANTISED = tuple(
    f"torch.ao.{room}"
    for room in ("nn.quantized", "nn.intrinsic.quantized", "quantization.observer", "quantization.fake_quantize")
)


def unwrap(network: Any) -> Any:
    """What ``DataParallel``, ``DistributedDataParallel``, ``torch.compile`` or ``AveragedModel`` was put around."""
    while isinstance(network, nn.Module):
        inner = getattr(network, "_orig_mod", None)  # of what torch.compile has made
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            inner = network.module
        if inner is None:
            break
        network = inner
    return network


def prepared(net: nn.Module) -> nn.Module:
    """A copy of ``net``, which stays as it is.

    Wrappers at any depth are gone, scripted modules are ``Scripted`` ones; what weight and spectral norm, pruning and
    parametrisations make of a weight has become the weight. Raises InputError, naming the part, for exported and
    quantised modules and weights that are not there yet.
    """
    net = unwrap(net)
    refuse_fixed(net)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            raise InputError(f"weight '{name}' has no value yet: load the weights, or run the network once, before")
    net = _in_python(copied(net).float().eval())
    for module in [each for each in net.modules() if not isinstance(each, torch.jit.ScriptModule)]:
        for name, child in module.named_children():
            setattr(module, name, _in_python(unwrap(child)))
    with torch.no_grad():
        for module in net.modules():
            _bake(module)
    return net.requires_grad_(False)


def _in_python(module: nn.Module) -> nn.Module:
    return in_python(module) if isinstance(module, torch.jit.ScriptModule) else module


def refuse_fixed(net: Any) -> None:
    """Raise InputError, naming the part, for what is an exported program by now, and for modules that are quantised or
    made ready for it."""
    for name, module in net.named_modules() if isinstance(net, nn.Module) else [("", net)]:
        if _is_exported(module):
            raise InputError(f"{_part(name)} is exported (torch.export): give the module that was exported")
        if any(cls.__module__.startswith(_QUANTISED) for cls in type(module).__mro__):
            raise InputError(
                f"{_part(name)} is quantised ({type(module).__name__}): give the float network that it was made of"
            )


def _is_exported(module: Any) -> bool:
    """Whether it is an exported program, or the module that one gives, which calls ATen's operators."""
    calls = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    return isinstance(module, ExportedProgram) or any(isinstance(node.target, OpOverload) for node in calls)


def _part(name: str) -> str:
    return f"module '{name}'" if name else "the network"


def copied(net: nn.Module, kept: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A copy of ``net``; functions of TorchScript are the same, and so are the weights that are kept. Raises InputError
    where there is none."""
    values = [value for module in net.modules() for value in pytree.tree_leaves(vars(module))]
    # PyTorch copies no tensor that a graph has made, as the weight of weight_norm is after a forward
    memo: dict[int, Any] = {
        id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf
    }
    memo |= {id(value): value for value in values if isinstance(value, torch.jit.ScriptFunction)}  # nor these
    memo |= {id(weight): weight for weight in kept}
    try:
        made = copy.deepcopy(net, memo)
    except (*MISFIT, pickle.PickleError) as error:
        raise InputError(
            f"{type(net).__name__} can't be copied ({reason(error)}): take off what is no tensor, number or module, as "
            "open files"
        ) from error

    for module in made.modules():
        for values in (vars(module), *(vars(module).get(name, {}) for name in HOOKS)):
            for key, value in list(values.items()):
                if isinstance(value, FunctionType) and value.__closure__:
                    values[key] = _rebound(value, memo)
    return made


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function with the copies of what it has from outside, as a hook has the module that keeps its features: a copy
    of it would go on with the network that was copied."""
    cells = present(function.__closure__)
    with suppress(ValueError):  # a cell that is still empty
        held = [cell.cell_contents for cell in cells]
        cells = tuple(CellType(memo.get(id(value), value)) for value in held)
    found = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    found.__kwdefaults__ = function.__kwdefaults__
    found.__dict__ |= function.__dict__
    return found


def lend(source: nn.Module, net: nn.Module) -> None:
    """Let ``net``, a copy of ``source`` that nothing writes into any more, have the weights of that wherever they are
    the same: a large network's need not stand in memory twice."""
    theirs = dict(source.named_parameters())
    for name, mine in net.named_parameters():
        own = theirs.get(name)
        if type(own) is nn.Parameter and own.dtype == mine.dtype and torch.equal(own, mine):
            mine.data = own.data


def part(source: nn.Module, net: nn.Module) -> None:
    """Give ``net`` copies of the weights that it has been lent."""
    lent = {weight.data_ptr() for weight in source.parameters()}
    for weight in net.parameters():
        if weight.data_ptr() in lent:
            weight.data = weight.data.clone()


def _bake(module: nn.Module) -> None:
    """Put the weights that a module makes of others in their place."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _MAKERS):
            hook.remove(module)
            del module._forward_pre_hooks[key]
    if parametrize.is_parametrized(module):
        weights = {name: getattr(module, name) for name, _ in module.get_submodule("parametrizations").named_children()}
        # not by parametrize's own function: it edits the class, which the network that this is a copy of has too
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, weight in weights.items():
            setattr(module, name, nn.Parameter(weight))
