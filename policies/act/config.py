"""Frozen configuration of an ACT policy, and its preset.

A ResNet for every camera, an encoder over its features and the state, a decoder with one query for
each row of the chunk. Sizes: arXiv 2304.13705, LeRobot's `act`. Allocates nothing and imports no
torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from trimvla.runtime.errors import ConfigError

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Activation = Literal["relu", "gelu"]
Rgb = tuple[float, float, float]
DEEP: dict[Backbone, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Backbone -> blocks of its four layers."""
BASIC = ("resnet18", "resnet34")
"""Backbones of blocks of two convolutions; the others have three, and four times the channels."""
CHANNELS = (64, 128, 256, 512)
"""Of the four layers, inside their blocks."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ActConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole policy."""

    family: Literal["act"] = "act"
    name: str
    cameras: tuple[str, ...]
    """Names, in the order in which the policy was trained with them."""
    image_height: int
    image_width: int
    """Of every camera's image [pixels]."""
    mean: tuple[Rgb, ...]
    """Of each camera's pixels from 0 to 1, which are standardised inside the network."""
    std: tuple[Rgb, ...]
    backbone: Backbone = "resnet18"
    dilated: bool = False
    """The last of the backbone's layers keeps the resolution: four times the image tokens."""
    width: int = 512
    heads: int = 8
    mlp_hidden: int = 3200
    activation: Activation = "relu"
    pre_norm: bool = False
    encoder_layers: int = 4
    decoder_layers: int = 1
    horizon: int = 100
    action_dim: int = 6
    state_dim: int = 6
    """Numbers of the robot's state; 0: it reads none."""
    environment_dim: int = 0
    """Numbers of the environment's state, behind the robot's; 0: it reads none."""
    latent_dim: int = 32
    vae_layers: int = 0
    """Of the encoder that training alone has, which a checkpoint stores; 0: none."""

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"expected cameras of different names, got {list(self.cameras)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != len(self.cameras):
                got = len(getattr(self, name))
                words = f"{len(self.cameras)} entries of '{name}', one for each camera"
                raise ConfigError(f"expected {words}, got {got}")
        if not all(number > 0 for rgb in self.std for number in rgb):
            raise ConfigError(f"expected numbers above 0 for 'std', got {self.std}")
        if self.heads < 1 or self.width % 4 or self.width % self.heads or self.width < 4:
            got = f"{self.width} and {self.heads}"
            raise ConfigError(f"expected a width that 4 and the number of heads divide, got {got}")
        if self.dilated and self.backbone in BASIC:
            raise ConfigError(f"expected resnet50 or deeper for 'dilated', got {self.backbone}")
        for name, least in LEAST.items():
            got = getattr(self, name)
            if got < least:
                raise ConfigError(f"expected at least {least} for '{name}', got {got}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one image's features: each of the backbone's steps halves, and rounds
        up.
        """
        halvings = 4 if self.dilated else 5
        height = self.image_height
        width = self.image_width
        for _ in range(halvings):
            height = -(-height // 2)
            width = -(-width // 2)
        return height, width

    @property
    def tokens(self) -> int:
        """Image tokens of one camera."""
        rows, columns = self.grid
        return rows * columns

    @property
    def visual_tokens(self) -> int:
        """Image tokens of all cameras."""
        return len(self.cameras) * self.tokens

    @property
    def read_dim(self) -> int:
        """Numbers that the policy reads beside images: the robot's, then the environment's."""
        return self.state_dim + self.environment_dim

    @property
    def single_tokens(self) -> int:
        """Tokens in front of the images': the latent, and one for each state."""
        return 1 + (self.state_dim > 0) + (self.environment_dim > 0)

    @property
    def features(self) -> int:
        """Channels of the backbone's features."""
        return CHANNELS[-1] if self.backbone in BASIC else 4 * CHANNELS[-1]

    @property
    def fingerprint(self) -> str:
        """Names this config in plans and calibration data."""
        encoded = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(encoded).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; `from_dict` is its inverse."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActConfig:
        """Build from the JSON form; ConfigError names the field that is wrong."""
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"policy config: {error}") from error


LEAST = {
    "image_height": 1,
    "image_width": 1,
    "mlp_hidden": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "horizon": 1,
    "action_dim": 1,
    "state_dim": 0,
    "environment_dim": 0,
    "latent_dim": 1,
    "vae_layers": 0,
}
"""Field -> its smallest value."""

PRESETS: dict[str, ActConfig] = {
    "act-so101": ActConfig(
        name="act-so101",
        cameras=("front", "wrist"),
        image_height=480,
        image_width=640,
        mean=(IMAGENET_MEAN,) * 2,
        std=(IMAGENET_STD,) * 2,
        vae_layers=4,
    )
}
"""LeRobot's defaults on an SO-101: six joints, two cameras of 640 x 480."""
