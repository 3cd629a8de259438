"""The plan: what is kept of a policy, and where the decision came from. One small JSON file.

Knows its own fields and what is wrong with them by themselves; whether a plan fits a policy is
checked by `policies.trimmed`. The empty plan is the dense policy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from trimvla.runtime.bundle.plan_ranges import MAX_INDEX, MAX_TOKENS, check_range, check_rising
from trimvla.runtime.bundle.vision_plan import VisionPlan
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own
from trimvla.runtime.text_files import convert, parse_json, read_bytes

SELECTORS = ("efficientvla", "fastv", "relevance", "random", "uniform")
TokenSelector = str
"""One of `SELECTORS`, or "module:attribute" of somebody's own, which runtime never imports."""
RANKED = ("relevance", "fastv")
"""Selectors that keep the most relevant tokens and nothing else."""
MAX_PLAN_BYTES = 16 << 20
MAX_GUIDANCE = 1000.0
DISTILLED = "distilled"
"""The guidance of a plan whose head was trained to do without the unconditional half."""
MASK = re.compile(r"[0-9a-fA-F]{1,65536}")  # hexadecimal digits of one layer's channels
# field of `TokenPlan` -> the least and the most that it may be
TOKEN_RANGES = (
    ("keep", 1, MAX_TOKENS),
    ("after", 1, MAX_INDEX),
    ("key", 0, MAX_TOKENS),
    ("floor", 0, MAX_TOKENS),
    ("seed", 0, 2**63 - 1),
)


class TokenPlan(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Which visual tokens go on after the first layers; they keep their order and their positions.

    `selector` names a row of `policies.tokens.SELECTORS`. Fields after `after` matter to some
    selectors only.

    Example:
        >>> from trimvla.runtime import TokenPlan
        >>> TokenPlan(selector="uniform", keep=64).after
        2
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
    rows: Literal["text", "instruction", "last", "state", "none"] = "text"
    """Whose attention is relevance: all of the text, the same without its suffix, its last token,
    or the state's; nobody's, for a selector of one's own that does not look at it.
    """
    source: Literal["previous", "next", "expert"] = "previous"
    """The layer whose attention is read: the last that sees every token, the first that does not,
    or the first of the action expert whose queries look at these tokens alone, at the first sampler
    step (`rows` is then unused).
    """
    embedding: Literal["hidden", "projected"] = "hidden"
    """What diversity compares: the hidden states where tokens are dropped, or the projector's
    output.
    """
    seed: int = 0
    """Of the random selector."""
    quotas: tuple[int, ...] | None = None
    """Tokens kept of each camera, in the cameras' order; together `keep`."""
    floor: int = 0
    """Tokens kept of each camera at least, where the rest goes to the best of all."""

    def __post_init__(self) -> None:
        is_ours = self.selector in SELECTORS
        if not is_ours and not is_own(self.selector):
            known = f"one of {', '.join(SELECTORS)}, or module:attribute of your own"
            raise ConfigError(
                f"expected {known}, for 'selector' of 'tokens', got {self.selector!r}"
            )
        if is_ours and self.rows == "none":
            raise ConfigError(
                f"expected other 'rows' of 'tokens' than none for the selector {self.selector!r}"
            )
        for name, least, most in TOKEN_RANGES:
            check_range(f"{name}' of 'tokens", getattr(self, name), least, most)
        if self.selector == "efficientvla" and not 1 <= self.key <= self.keep:
            raise ConfigError(
                f"expected at least as many tokens as key tokens: {self.keep} kept, {self.key} key"
            )
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(
                f"expected a share from 0 to 1 for 'alpha' of tokens, got {self.alpha}"
            )
        if self.quotas is not None:
            _check_quotas(self.quotas, self.keep, self.floor)
        if self.floor and self.selector not in RANKED:
            words = (
                f"a selector that ranks by relevance alone, one of {list(RANKED)}, where there is a"
                " 'floor'"
            )
            raise ConfigError(f"expected {words} for 'tokens', got {self.selector!r}")

    @property
    def scored(self) -> str | None:
        """Whose attention the selector needs: a value of `rows`, or none at all."""
        if self.selector not in SELECTORS:
            return None if self.rows == "none" else self.rows
        by_selector = {"efficientvla": self.rows, "relevance": self.rows, "fastv": "last"}
        return by_selector.get(self.selector)


class Provenance(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
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


class Plan(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What is kept of a policy; a field that is left out keeps everything.

    Example:
        >>> from trimvla.runtime import Plan, TokenPlan
        >>> plan = Plan(layers=tuple(range(14)), tokens=TokenPlan(keep=56, after=5))
        >>> plan.dense, Plan().dense
        (False, True)
    """

    policy: str | None = None
    """Fingerprint of the config that the plan was made for."""
    layers: tuple[int, ...] | None = None
    """Kept language layers, ascending."""
    channels: tuple[str, ...] | None = None
    """Kept MLP channels of each kept layer: hexadecimal masks, channel 0 is the lowest bit (`mask`,
    `unmask`).
    """
    expert_layers: tuple[int, ...] | None = None
    """Kept layers of the action expert, ascending, by the index of the language layer that each
    reads; all of `layers` where left out. Language layers behind the last of them have no reader
    and go too.
    """
    expert_channels: tuple[str, ...] | None = None
    """Kept MLP channels of each kept expert layer, as `channels`."""
    tokens: TokenPlan | None = None
    vision: VisionPlan | None = None
    recompute: tuple[int, ...] | None = None
    """Sampler steps that run the head's blocks; the others reuse what the last of these added to
    the stream.
    """
    steps: int | None = None
    """Sampler steps: DDIM or Euler."""
    guidance: float | Literal["distilled"] | None = None
    """Classifier-free guidance scale; 1 or less: none, the head's conditional half alone.
    `distilled`: that half alone too, with a head that was trained to give what guidance gave
    (`trimvla recover --parts head`); it needs the patch that holds that head.
    """
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name, indices in (
            ("layers", self.layers),
            ("expert_layers", self.expert_layers),
            ("recompute", self.recompute),
        ):
            if indices is not None:
                check_rising(name, indices)
        if self.steps is not None:
            check_range("steps", self.steps, 1, MAX_INDEX)
        if self.guidance is not None:
            _check_guidance(self.guidance)
        _check_masks("channels", self.channels)
        _check_masks("expert_channels", self.expert_channels)
        beyond = set(self.expert_layers or ()) - set(self.layers or self.expert_layers or ())
        if beyond:
            words = "'expert_layers' among 'layers': each reads the language layer of its index"
            raise ConfigError(f"expected {words}, got {sorted(beyond)} that are not kept")
        if self.recompute is not None and self.recompute[0] != 0:
            raise ConfigError(
                "expected 0 as the first of 'recompute': it has nothing to reuse, got"
                f" {self.recompute}"
            )

    @property
    def parts(self) -> frozenset[str]:
        """Names of all fields that ask for something, such as "layers", "tokens" and
        "tokens.quotas".
        """
        return frozenset(_parts(self)) - {"policy", "provenance"}

    def guidance_scale(self, configured: float) -> float:
        """The scale that the sampler runs with, of a policy whose config has this one.

        Example:
            >>> from trimvla.runtime import Plan
            >>> [Plan(guidance=scale).guidance_scale(1.5) for scale in (None, 2.0, "distilled")]
            [1.5, 2.0, 1.0]
        """
        if self.guidance is None:
            return configured
        return 1.0 if isinstance(self.guidance, str) else self.guidance

    @property
    def dense(self) -> bool:
        """Whether the plan leaves everything as in the config."""
        return msgspec.structs.replace(self, policy=None, provenance=None) == Plan()


def _parts(part: msgspec.Struct, prefix: str = "") -> Iterator[str]:
    """Names of the fields that differ from their defaults, and of those within them."""
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        if value == field.default:
            continue
        yield f"{prefix}{field.name}"
        if isinstance(value, TokenPlan | VisionPlan):
            yield from _parts(value, f"{prefix}{field.name}.")


def check_parts(plan: Plan, known: Collection[str], policy: str) -> None:
    """Refuse a plan with parts that a family does not have.

    Args:
        plan: the plan.
        known: the names that the family knows, as `Plan.parts` gives them.
        policy: the policy's name, for the error's words.

    Raises:
        ConfigError: names the fields.
    """
    unknown = sorted(plan.parts - set(known))
    if unknown:
        raise ConfigError(
            f"expected a plan for policy '{policy}', which has nothing to trim by {unknown}"
        )


def _check_guidance(guidance: float | str) -> None:
    if not isinstance(guidance, str):
        check_range("guidance", guidance, 0, MAX_GUIDANCE)
    elif guidance != DISTILLED:
        raise ConfigError(f"expected a scale or '{DISTILLED}' for 'guidance', got {guidance!r}")


def _check_masks(name: str, masks: Sequence[str] | None) -> None:
    if len(masks or ()) > MAX_INDEX:
        raise ConfigError(
            f"expected at most {MAX_INDEX} masks for '{name}', got {len(masks or ())}"
        )
    for text in masks or ():
        unmask(text, name)


def _check_quotas(quotas: Sequence[int], keep: int, floor: int) -> None:
    if min(quotas, default=-1) < 0 or sum(quotas) != keep:
        words = (
            f"numbers from 0 on, together the {keep} tokens that are kept, for 'quotas' of 'tokens'"
        )
        raise ConfigError(f"expected {words}, got {list(quotas)}")
    if floor:
        raise ConfigError(
            f"expected either 'quotas' or 'floor' of 'tokens', got both: {list(quotas)}, {floor}"
        )


def mask(indices: Sequence[int]) -> str:
    """Indices as a hexadecimal mask."""
    return f"{sum(1 << index for index in set(indices)):x}"


def unmask(text: str, name: str = "channels") -> tuple[int, ...]:
    """Ascending indices of a hexadecimal mask; ConfigError, which names the field, where it is none
    or empty.
    """
    bits = int(text, 16) if MASK.fullmatch(text) else 0
    if bits <= 0:
        raise ConfigError(
            f"expected a hexadecimal mask with a bit set for '{name}', got {text[:20]!r}"
        )
    return tuple(index for index, bit in enumerate(reversed(f"{bits:b}")) if bit == "1")


def plan_digest(plan: Plan) -> str:
    """sha256 of what a plan keeps, in hexadecimal: the same however the decision came about.

    Example:
        >>> from trimvla.runtime import Plan
        >>> from trimvla.runtime.bundle.plan import plan_digest
        >>> plan_digest(Plan(steps=5, policy="641ebd9ff219a3f5")) == plan_digest(Plan(steps=5))
        True
    """
    kept = msgspec.structs.replace(plan, policy=None, provenance=None)
    return hashlib.sha256(msgspec.json.encode(kept, order="deterministic")).hexdigest()


def load_plan(path: Path) -> Plan:
    """Read a plan; ConfigError with the field that is wrong.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.runtime import Plan, load_plan, save_plan
        >>> path = Path(tempfile.mkdtemp()) / "plan.json"
        >>> save_plan(Plan(layers=(0, 1, 3)), path)
        >>> load_plan(path).layers
        (0, 1, 3)
    """
    return parse_plan(read_bytes(path, "a plan", limit=MAX_PLAN_BYTES), path)


def parse_plan(raw: bytes, path: Path) -> Plan:
    """A plan's text; `path` is for the error's words. Raises ConfigError and nothing else."""
    return convert(parse_json(raw, path, "a plan"), Plan, path)


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from trimvla.runtime import Plan, save_plan
        >>> path = Path(tempfile.mkdtemp()) / "plan.json"
        >>> save_plan(Plan(steps=5), path)
        >>> print(path.read_text())
        {
         "steps": 5
        }
    """
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
