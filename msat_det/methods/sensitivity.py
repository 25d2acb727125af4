"""How much a small error of each channel of a call site changes the outputs of the float network."""

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from msat_det.graph.channels import mean_by_channel
from msat_det.graph.facts import facts, is_site
from msat_det.graph.graph import Batch, Graph
from msat_det.graph.inputs import cut, images_in


def sensitivity(graph: Graph, batch: Batch, draws: int = 2) -> dict[str, Tensor]:
    """Mean squared derivative of the standardised outputs by each call site's activation, {call site: (C,)}, or ()
    where no channels are known.

    Independent errors of variance e² in all neurons of channel c change the outputs by Σ_c neurons · e²·s_c in square
    on average over outputs, in units of each output tensor's variance; tensors weigh alike (first order). Estimated by
    Hutchinson's method: E[(Jᵀr)²] over ``draws`` random signs r per image of ``batch``.
    """
    generator = torch.Generator().manual_seed(0)
    axes = {node.name: facts(node).channel_axis for node in graph.sites}
    images = images_in(batch)
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        for one in cut(batch, 1):
            sites, outputs = _run(graph, pytree.tree_map(torch.clone, one))
            for draw in range(draws):
                total = sum(_projected(output, generator) for output in outputs) / len(outputs) ** 0.5
                last = draw == draws - 1
                derivatives = torch.autograd.grad(
                    total, list(sites.values()), retain_graph=not last, allow_unused=True, materialize_grads=True
                )
                for name, derivative in zip(sites, derivatives, strict=True):
                    each = mean_by_channel(derivative.square(), axes[name]) / (images * draws)
                    found[name] = found.get(name, 0.0) + each
    return found


def _run(graph: Graph, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The activations of the call sites and the outputs of one image, with their derivatives to be had."""
    for value in pytree.tree_leaves(batch):
        value.requires_grad_(value.is_floating_point())
    sites: dict[str, Tensor] = {}
    for node, value in graph.walk(batch):
        if is_site(node):
            sites[node.name] = value
    return sites, [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _projected(output: Tensor, generator: torch.Generator) -> Tensor:
    """The standardised output on a random direction of length 1."""
    signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
    spread = output.detach().std(correction=0).clamp(min=1e-12)
    return (output * signs.to(output)).sum() / (spread * output.numel() ** 0.5)
