"""What a policy takes and gives, as a manifest of schema 2 describes it: images, state, prompt,
flow and action.

One struct a part. A family fills them in (`policies.families.Family.describe`), the runtime reads
nothing else to make a policy's inputs and to scale its output. Knows no file, and checks nothing
but what one field rules out by itself.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ActionKind = Literal["delta", "absolute", "velocity", "gripper"]
"""What one action dimension means to the robot; it decides what a hold is (`fallback.py`)."""
Resize = Literal["bicubic-antialias", "bilinear-antialias", "bilinear"]
"""Pillow's two filters on uint8, or torch's bilinear without antialias on float32
(`preprocess.letterbox`).
"""
Aspect = Literal["stretch", "pad-centre", "pad-left-top", "square-centre"]
"""How h x w becomes a square: `stretch` alone changes the sides' ratio. `pad-*`: resized until it
fits, then padded, half and half (the odd pixel right and bottom) or all of it left and top.
`square-centre`: padded first, half and half, then resized.
"""
Statistics = Literal["quantiles", "mean_std", "min_max", "none"]
"""q01 and q99 to -1 and 1; mean and std to 0 and 1; min and max to -1 and 1; or as it is."""


class CameraSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One image of an observation, by the name that the policy knows its camera by."""

    name: str
    required: bool = True
    """False: where it is missing, the image is `ImagesSpec.pad_value` everywhere."""


class ImagesSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the images become one tensor, `dtype`[cameras, height, width, 3], in the order of
    `cameras`.
    """

    cameras: tuple[CameraSpec, ...]
    size: int
    """Pixels a side; the height where there is a `width`."""
    tensor: str = "images"
    """Name of the vision stage's input."""
    resize: Resize = "bicubic-antialias"
    aspect: Aspect = "stretch"
    pad_value: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB of what is padded, in the units of `scale`."""
    dtype: Literal["uint8", "float32"] = "uint8"
    scale: tuple[float, float] = (0.0, 255.0)
    """What pixel values 0 and 255 become; (0, 255) for uint8."""
    width: int | None = None
    """Pixels across, where it is not `size`: images that are no squares are stretched to fit."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images that the policy looks at [pixels]."""
        return self.size, self.size if self.width is None else self.width

    @property
    def names(self) -> tuple[str, ...]:
        """The cameras' names, in order."""
        return tuple(camera.name for camera in self.cameras)


class PromptSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an instruction becomes token ids: BOS, text, suffix, padding up to the next bucket
    length.
    """

    template: str
    """With {instruction}, and with {state} where the state is text."""
    bos_id: int | None
    suffix_ids: tuple[int, ...]
    pad_id: int
    buckets: tuple[int, ...]
    """Lengths of `input_ids`, rising; a longer prompt is refused."""
    lowercase: bool = True
    """Of the instruction alone, as the next two."""
    strip: bool = False
    """Without white space around it."""
    underscores: bool = False
    """With a space for each underscore."""
    newline: bool = False
    """The text ends in a newline: one is added where the instruction has none there."""
    trim_end: bool = True
    """Spaces at the end of the whole text are left out."""
    split_at: str | None = None
    """A part of the template at which it is taken apart and left out: both halves are tokenised by
    themselves.
    """
    vocabulary: int | None = None
    """Rows of the embedding table: every id of the tokenizer lies below."""


class StateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the robot's state becomes an input: normalised, padded with zeros, then a tensor `state`
    or text.
    """

    names: tuple[str, ...]
    """Of the numbers, in order; empty where the checkpoint does not name them."""
    dim: int
    padded: int
    """Numbers after padding: float32[1, padded], or as many in the text."""
    statistics: Statistics
    epsilon: float = 0.0
    """Added to the divisor: std, or (mean_std apart) what lies between the limits."""
    into: Literal["tensor", "text"] = "tensor"
    units: tuple[str, ...] = ()
    """Of the numbers, such as `deg`; empty where they are not known. Compared with the robot's."""
    bins: int | None = None
    """For text: -1 to 1 in as many equal bins; a number is the index of its bin, -1 below all of
    them.
    """


class ActionSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The action chunk: `horizon` rows of `dim` numbers at `control_hz`, scaled back with one key's
    statistics.
    """

    horizon: int
    dim: int
    control_hz: float
    kinds: tuple[ActionKind, ...]
    statistics_key: str
    padded_dim: int | None = None
    """Numbers in a row of the noise and of the sample, where more than `dim`: the rest is cut
    off.
    """
    normalization: Statistics = "quantiles"
    clip: bool = True
    """The sample is cut to [-1, 1] first."""
    binary_gripper: bool = True
    """Dimensions of kind gripper become 0 (below 0.5) or 1, and are not scaled."""
    epsilon: float = 0.0
    """Added to the factor: std, or what lies between the limits."""
    noise: bool = True
    """The policy starts from noise; False: the same observation has the same actions always."""
    names: tuple[str, ...] = ()
    """Of the `dim` numbers, such as `elbow_flex.pos`; empty where they are not known. Compared
    with the robot's before it is armed, as the next.
    """
    units: tuple[str, ...] = ()
    """Of the numbers, such as `deg` or `rad`."""

    @property
    def sampled_dim(self) -> int:
        """Numbers in a row of the noise and of the sample."""
        return self.dim if self.padded_dim is None else self.padded_dim


class FlowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flow sampler: Euler steps, and the time at which it is all noise."""

    steps: int
    noise_at: Literal[0, 1] = msgspec.field(default=1, name="from")


class InputsAndOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All parts. `prompt` and `state` are None where the policy reads none, `flow` where its
    sampler is none.
    """

    images: ImagesSpec
    prompt: PromptSpec | None = None
    state: StateSpec | None = None
    flow: FlowSpec | None = None
    action: ActionSpec
