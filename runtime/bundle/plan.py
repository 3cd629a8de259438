"""The plan: what is kept of a policy, and where the decision came from. One small JSON file.

Knows its own fields and what is wrong with them by themselves; whether a plan fits a policy is checked by
`policies.trimmed`. The empty plan is the dense policy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import convert, parse_json, read_bytes

TokenSelector = Literal["efficientvla", "fastv", "random", "uniform"]
MAX_PLAN_BYTES = 16 << 20
MAX_INDEX = 4096  # of a layer or a sampler step
MAX_TOKENS = 1 << 20
MAX_GUIDANCE = 1000.0
MASK = re.compile(r"[0-9a-fA-F]{1,65536}")  # hexadecimal digits of one layer's channels
# field of `TokenPlan` -> the least and the most that it may be
TOKEN_RANGES = (
    ("keep", 1, MAX_TOKENS),
    ("after", 1, MAX_INDEX),
    ("key", 0, MAX_TOKENS),
    ("seed", 0, 2**63 - 1),
)


class TokenPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Which visual tokens go on after the first layers; they keep their order and their positions.

    `selector` names a row of `policies.tokens.SELECTORS`. Fields after `after` matter to some selectors only.
    """

    selector: TokenSelector = "efficientvla"
    keep: int
    """Visual tokens that are kept."""
    after: int = 2
    """Kept language layers that still see every token."""
    key: int = 4
    """Most relevant tokens, kept first; diversity is measured against them."""
    alpha: float = 0.5
    """Share of the other tokens that relevance chooses; diversity chooses the rest."""
    rows: Literal["text", "instruction", "last"] = "text"
    """Whose attention is relevance: everything after the picture, the same without the two suffix ids, or EOS."""
    source: Literal["previous", "next"] = "previous"
    """The layer whose attention is read: the last that sees every token, or the first that does not."""
    embedding: Literal["hidden", "projected"] = "hidden"
    """What diversity compares: the hidden states where tokens are dropped, or the projector's output."""
    seed: int = 0
    """Of the random selector."""

    def __post_init__(self) -> None:
        for name, least, most in TOKEN_RANGES:
            _check_range(f"{name}' of 'tokens", getattr(self, name), least, most)
        if self.selector == "efficientvla" and not 1 <= self.key <= self.keep:
            raise ConfigError(f"expected at least as many tokens as key tokens: {self.keep} kept, {self.key} key")
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"expected a share from 0 to 1 for 'alpha' of tokens, got {self.alpha}")

    @property
    def scored(self) -> str | None:
        """Whose attention the selector needs: a value of `rows`, or none at all."""
        return {"efficientvla": self.rows, "fastv": "last"}.get(self.selector)


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How a plan came about, so that it can be made again and doubted."""

    criterion: str
    """Name of the layer criterion."""
    scores: tuple[float, ...]
    """Worth of every language layer of the dense policy."""
    calibration: str
    """sha256 of the calibration data."""
    frames: int
    """Calibration samples."""
    seed: int = 0
    created_utc: str


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What is kept of a policy; a field that is left out keeps everything."""

    policy: str | None = None
    """Fingerprint of the config that the plan was made for."""
    layers: tuple[int, ...] | None = None
    """Kept language layers, ascending."""
    channels: tuple[str, ...] | None = None
    """Kept MLP channels of each kept layer: hexadecimal masks, channel 0 is the lowest bit (`mask`, `unmask`)."""
    tokens: TokenPlan | None = None
    recompute: tuple[int, ...] | None = None
    """Sampler steps that run the head's blocks; the others reuse what the last of these added to the stream."""
    steps: int | None = None
    """DDIM steps."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 or less: none."""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name, indices in (("layers", self.layers), ("recompute", self.recompute)):
            if indices is not None:
                _check_rising(name, indices)
        if self.steps is not None:
            _check_range("steps", self.steps, 1, MAX_INDEX)
        if self.guidance is not None:
            _check_range("guidance", self.guidance, 0, MAX_GUIDANCE)
        if len(self.channels or ()) > MAX_INDEX:
            raise ConfigError(f"expected at most {MAX_INDEX} masks for 'channels', got {len(self.channels or ())}")
        if self.recompute is not None and self.recompute[0] != 0:
            raise ConfigError(f"expected 0 as the first of 'recompute': it has nothing to reuse, got {self.recompute}")
        for text in self.channels or ():
            unmask(text)

    @property
    def dense(self) -> bool:
        """Whether everything is kept as the config says."""
        return msgspec.structs.replace(self, policy=None, provenance=None) == Plan()


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is not either
        raise ConfigError(f"expected {least:g} to {most:g} for '{name}', got {value}")


def _check_rising(name: str, indices: Sequence[int]) -> None:
    if len(indices) > MAX_INDEX or any(index > MAX_INDEX for index in indices):
        got = f"{len(indices)} up to {max(indices)}"
        raise ConfigError(f"expected at most {MAX_INDEX} indices up to {MAX_INDEX} for '{name}', got {got}")
    if not indices or indices[0] < 0 or any(a >= b for a, b in pairwise(indices)):
        raise ConfigError(f"expected rising indices from 0 on for '{name}', got {list(indices)}")


def mask(indices: Sequence[int]) -> str:
    """Indices as a hexadecimal mask."""
    return f"{sum(1 << index for index in set(indices)):x}"


def unmask(text: str) -> tuple[int, ...]:
    """Ascending indices of a hexadecimal mask; ConfigError where it is none or empty."""
    bits = int(text, 16) if MASK.fullmatch(text) else 0
    if bits <= 0:
        raise ConfigError(f"expected a hexadecimal mask with a bit set for 'channels', got {text[:20]!r}")
    return tuple(index for index, bit in enumerate(reversed(f"{bits:b}")) if bit == "1")


def load_plan(path: Path) -> Plan:
    """Read a plan; ConfigError with the field that is wrong."""
    return parse_plan(read_bytes(path, "a plan", limit=MAX_PLAN_BYTES), path)


def parse_plan(raw: bytes, path: Path) -> Plan:
    """A plan's text; `path` is for the error's words. Raises ConfigError and nothing else."""
    return convert(parse_json(raw, path, "a plan"), Plan, path)


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
