"""Random masks that depend on what they are for, never on the order or the batch in which they are drawn."""

import zlib

import torch
from torch import Tensor

STEP = 0x9E3779B9  # between the keys of neighbouring elements
SHIFTS, FACTORS = (31, 27), (0x7FB5D329728EA185, 0x01DADEF4BC2DD44D)
BITS = 24  # of a hash that decide


def image_key(image_id: int | str) -> int:
    """A 32-bit number for an image id."""
    return zlib.crc32(str(image_id).encode())


def mask_keys(seed: int, images: list[int], site: int, t: int, device: torch.device) -> Tensor:
    """(B,) int64: what the masks of these images at call site ``site`` and timestep t are drawn by."""
    keys = torch.tensor(images, dtype=torch.int64, device=device)
    return _mix(keys ^ _mix(torch.tensor(seed * 0x10001 + site * 0x101 + t + 1, device=device)))


def bernoulli(p: float, seed: int, images: list[int], site: int, t: int, like: Tensor) -> Tensor:
    """A 0/1 mask of the shape of ``like`` (B, …), each element 1 with probability p.

    Element i of image b is a hash of (seed, images[b], site, t, i), i counted in the logical order of one image's
    elements, so that batch, chunk, memory layout and thread count do not matter.
    """
    keys = mask_keys(seed, images, site, t, like.device)
    index = torch.arange(like[0].numel(), dtype=torch.int64, device=like.device)
    bits = _mix(keys[:, None] + index[None, :] * STEP) & ((1 << BITS) - 1)
    return (bits < round(p * (1 << BITS))).to(like.dtype).reshape(like.shape)


def _mix(z: Tensor) -> Tensor:
    """A 64-bit finaliser (two rounds of shift, xor and multiply), enough to decorrelate neighbouring keys."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return z ^ ((z >> 33) & 0x7FFFFFFF)
