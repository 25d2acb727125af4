"""FastestDet (Ma 2022, github.com/dog-qiuqiu/FastestDet) as its authors name its parts: a network of one's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> list:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *[nn.ReLU()] * relu]


class Unit(nn.Module):
    """ShuffleNetV2's: at stride 2 two branches, at stride 1 one beside every other channel of its input."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        deep = block(width, width, 3, stride, width, relu=False)
        self.branch_main = nn.Sequential(*block(inputs, width, 1), *deep, *block(width, width, 1))
        if stride == 2:
            across = block(inputs, inputs, 3, 2, inputs, relu=False)
            self.branch_proj = nn.Sequential(*across, *block(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "branch_proj"):
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        batch, channels, height, width = x.shape
        kept, deep = x.reshape(batch, channels // 2, 2, height, width).transpose(1, 2).unbind(1)
        return torch.cat((kept, self.branch_main(deep)), 1)


class Conv1x1(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1x1 = nn.Sequential(*block(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


class Spp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.Conv1x1 = Conv1x1(336, width)
        for count in (1, 2, 3):
            layers = [layer for _ in range(count) for layer in block(width, width, 5, 1, width)]
            setattr(self, f"S{count}", nn.Sequential(*layers))
        self.output = nn.Sequential(*block(3 * width, width, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)))


class Branch(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.conv5x5 = nn.Sequential(*block(width, width, 5, 1, width), *block(width, outputs, 1, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


class FastestDet(nn.Module):
    """(B, 3, h, w) → objectness, boxes and class scores, raw, at a sixteenth of the input's size."""

    def __init__(self, classes: int = 80):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.first_conv = nn.Sequential(*block(3, 24, 3, 2))
        inputs = 24
        for stage, (count, outputs) in enumerate(((4, 48), (8, 96), (4, 192)), 2):
            units = [Unit(inputs, outputs // 2, 2), *(Unit(outputs // 2, outputs // 2, 1) for _ in range(count - 1))]
            setattr(self.backbone, f"stage{stage}", nn.Sequential(*units))
            inputs = outputs
        self.SPP = Spp(96)
        self.detect_head = nn.Module()
        self.detect_head.conv1x1 = Conv1x1(96, 96)
        for name, outputs in (("obj", 1), ("reg", 4), ("cls", classes)):
            setattr(self.detect_head, f"{name}_layers", Branch(96, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        body, head = self.backbone, self.detect_head
        fine = body.stage2(F.max_pool2d(body.first_conv(x), 3, 2, 1))
        middle = body.stage3(fine)
        deep = F.interpolate(body.stage4(middle), scale_factor=2.0)
        x = head.conv1x1(self.SPP(torch.cat((F.avg_pool2d(fine, 3, 2, 1), middle, deep), 1)))
        return head.obj_layers(x), head.reg_layers(x), head.cls_layers(x)
