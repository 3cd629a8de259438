"""A ResNet up to its last feature map, with its frozen batch norms folded into the convolutions.

Knows no camera and no file.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trimvla.policies.act.backbone_sizes import STEM, BlockSize, ConvSize, block_sizes
from trimvla.policies.act.config import CHANNELS, DEEP, ActConfig


def convolution(size: ConvSize) -> nn.Conv2d:
    """One convolution, with the folded norm's shift as its bias."""
    return nn.Conv2d(
        size.inputs,
        size.outputs,
        size.kernel,
        stride=size.stride,
        padding=size.padding,
        dilation=size.dilation,
    )


class Block(nn.Module):
    """Convolutions with ReLU between them, added to what came in."""

    def __init__(self, size: BlockSize) -> None:
        super().__init__()
        self.count = len(size.inner)
        for place, conv in enumerate(size.inner):
            self.add_module(f"conv{place + 1}", convolution(conv))
        self.downsample = None if size.beside is None else convolution(size.beside)

    def forward(self, x: Tensor) -> Tensor:
        """float[b, inputs, h, w] -> float[b, outputs, h / stride, w / stride]."""
        y = x
        for place in range(self.count):
            y = self.get_submodule(f"conv{place + 1}")(y)
            y = F.relu(y) if place + 1 < self.count else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Pixels to features."""

    def __init__(self, cfg: ActConfig) -> None:
        super().__init__()
        self.conv1 = convolution(STEM)
        blocks = [Block(size) for size in block_sizes(cfg)]
        for layer, count in enumerate(DEEP[cfg.backbone]):
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks[:count]))
            blocks = blocks[count:]

    def forward(self, pixels: Tensor) -> Tensor:
        """float[b, 3, H, W], standardised -> float[b, features, rows, columns]."""
        x = F.max_pool2d(F.relu(self.conv1(pixels)), 3, stride=2, padding=1)
        for layer in range(len(CHANNELS)):
            x = self.get_submodule(f"layer{layer + 1}")(x)
        return x
