"""The convolutions of a ResNet, by their sizes alone: what its modules are made of, and its cost.

Names of layers and blocks are torchvision's. Blocks of two convolutions (resnet18, resnet34) or of
three (deeper ones), each with the stride in its first 3 x 3 convolution. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trimvla.policies.act.config import BASIC, CHANNELS, DEEP, ActConfig


@dataclass(frozen=True)
class ConvSize:
    """One convolution."""

    name: str
    """Within the backbone: "layer1.0.conv1"."""
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1

    @property
    def padding(self) -> int:
        """As wide as half the kernel, spread."""
        return self.dilation * (self.kernel // 2)


@dataclass(frozen=True)
class BlockSize:
    """One block: its convolutions in their order, and the one beside them where there is one."""

    inner: tuple[ConvSize, ...]
    beside: ConvSize | None


STEM = ConvSize("conv1", 3, CHANNELS[0], 7, stride=2)
"""The first convolution, of every backbone."""


def block_sizes(cfg: ActConfig) -> Iterator[BlockSize]:
    """All blocks in their order."""
    basic = cfg.backbone in BASIC
    inputs = CHANNELS[0]
    for layer, (blocks, inside) in enumerate(zip(DEEP[cfg.backbone], CHANNELS, strict=True)):
        outputs = inside if basic else 4 * inside
        for index in range(blocks):
            spread = cfg.dilated and layer == len(CHANNELS) - 1
            stride = 2 if layer > 0 and index == 0 and not spread else 1
            # torchvision spreads from the layer's second block on
            dilation = 2 if spread and index > 0 else 1
            name = f"layer{layer + 1}.{index}"
            shapes = (
                ((inputs, inside, 3, stride, 1), (inside, outputs, 3, 1, 1))
                if basic
                else (
                    (inputs, inside, 1, 1, 1),
                    (inside, inside, 3, stride, dilation),
                    (inside, outputs, 1, 1, 1),
                )
            )
            inner = tuple(
                ConvSize(f"{name}.conv{place + 1}", *shape) for place, shape in enumerate(shapes)
            )
            differs = index == 0 and (stride != 1 or inputs != outputs)
            beside = ConvSize(f"{name}.downsample", inputs, outputs, 1, stride) if differs else None
            yield BlockSize(inner, beside)
            inputs = outputs


def conv_sizes(cfg: ActConfig) -> Iterator[ConvSize]:
    """All convolutions."""
    yield STEM
    for block in block_sizes(cfg):
        yield from block.inner
        if block.beside is not None:
            yield block.beside
