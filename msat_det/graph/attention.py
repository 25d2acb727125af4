"""Attention as the products, the softmax and the linear layers that it is made of, images first."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What ``F.scaled_dot_product_attention`` documents: (…, L, E), (…, S, E), (…, S, Ev) → (…, L, Ev)."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    weights = _weights(query, key, [] if attn_mask is None else [attn_mask], is_causal, scale)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


def _weights(query: Tensor, key: Tensor, masks: list[Tensor], is_causal: bool, scale: float | None = None) -> Tensor:
    """(…, L, S), how much each query takes of each key's value. masks: true for what it may take, or to be added."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        masks = [torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()]
    for mask in masks:
        scores = torch.where(mask, scores, float("-inf")) if mask.dtype is torch.bool else scores + mask
    return F.softmax(scores, -1)


def multi_head(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What ``nn.MultiheadAttention`` gives in evaluation: its output and, if they are needed, its weights.

    query: (B, L, E), with ``batch_first`` off (L, B, E); key, value alike. key_padding_mask: (B, S), of keys that no
    query takes. Raises NotImplementedError for added biases.
    """
    if layer.bias_k is not None or layer.add_zero_attn or query.dim() != 3:
        raise NotImplementedError("attention with added keys or of a single image is not converted")
    q, k, v = _projected(layer, query, key, value)
    q, k, v = (x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    masks = [m.logical_not() if m.dtype is torch.bool else m for m in (attn_mask, key_padding_mask) if m is not None]
    if attn_mask is not None and attn_mask.dim() == 3:
        masks[0] = masks[0].unflatten(0, (-1, layer.num_heads))
    if key_padding_mask is not None:
        masks[-1] = masks[-1][:, None, None]
    weights = _weights(q, k, masks, is_causal and not masks)
    y = F.linear((weights @ v).transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)
    y = y if layer.batch_first else y.transpose(0, 1)
    shown = weights.mean(1) if average_attn_weights else weights
    return y, shown if need_weights else None


def _projected(layer: nn.MultiheadAttention, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, …, E), by one layer where they are of one tensor."""
    bias = layer.in_proj_bias
    if layer.in_proj_weight is not None and inputs[0] is inputs[1] is inputs[2]:
        x = inputs[0] if layer.batch_first else inputs[0].transpose(0, 1)
        return F.linear(x, layer.in_proj_weight, bias).chunk(3, -1)
    given = layer.in_proj_weight is not None
    weights = (
        layer.in_proj_weight.chunk(3) if given else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    )
    biases = [None] * 3 if bias is None else bias.chunk(3)
    first = [x if layer.batch_first else x.transpose(0, 1) for x in inputs]
    return tuple(map(F.linear, first, weights, biases))
