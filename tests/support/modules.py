"""Networks as users write them."""

from typing import Any

import torch
import torch.nn.functional as F
from support.networks import images
from torch import Tensor, nn


class Fused(nn.Module):
    """As users write networks: modules and functions mixed, one module called twice, two inputs, a dict of outputs."""

    def __init__(self):
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(16, 8, 1)
        self.shared = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.gate = nn.Linear(8, 8)
        self.heads = nn.ModuleDict({"boxes": nn.Conv2d(8, 4, 1), "scores": nn.Conv2d(8, 3, 1)})

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Any]:
        x = torch.cat([F.relu(self.norm(self.colour(image))), torch.relu_(self.depth(depth))], dim=1)
        x = F.leaky_relu(self.mix(x), 0.1, inplace=True)
        fine = self.shared(x)
        coarse = self.shared(F.max_pool2d(fine, 2))
        coarse = coarse * torch.sigmoid(self.gate(coarse.mean((2, 3))))[:, :, None, None]
        x = self.drop(fine + F.interpolate(coarse, size=fine.shape[-2:])).clamp(min=0, max=4)
        return {"levels": [self.heads["boxes"](x), self.heads["scores"](x)], "mean": x.flatten(2).mean(-1)}


def inputs(seed: int) -> dict[str, Tensor]:
    return {"image": images(3, seed), "depth": images(3, seed + 50, channels=1)}


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "clamp": lambda x: x.clamp(-0.5, 1.5),
    "leaky relu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(4),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": nn.Hardtanh(),
    "silu": nn.SiLU(),
    "sigmoid": torch.sigmoid,
    "tanh": nn.Tanh(),
    "elu": nn.ELU(),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU("tanh"),
    "mish": F.mish,
    "softplus": nn.Softplus(),
    "logsigmoid": nn.LogSigmoid(),
    "rrelu": nn.RReLU(),
    "steep": nn.LeakyReLU(2.0),
    "falling": nn.LeakyReLU(-0.5),
    "threshold": nn.Threshold(-0.5, -0.5),
    "hardshrink": nn.Hardshrink(0.05),
    "softshrink": nn.Softshrink(0.3),
    "tanhshrink": nn.Tanhshrink(),
    "softsign": nn.Softsign(),
}


class Activated(nn.Module):
    def __init__(self, activation: Any):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.second(self.activation(self.first(x)))))
