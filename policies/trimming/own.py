"""Token selectors and layer criteria of the user's own, as `module:attribute`.

A selector is imported where a person names it: `use_selector` is called for `--selector` and for
the plan of `--plan`. From then on this process knows it; the plan in a bundle's manifest alone
never imports one. Knows functions and what they must return; nothing of what they look at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trimvla.policies.trimming import tokens
from trimvla.policies.trimming.calibrate import Statistics
from trimvla.policies.trimming.importance import CRITERIA, Criterion
from trimvla.policies.trimming.tokens import SELECTORS, Seen
from trimvla.runtime.bundle.plan import TokenPlan
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import blame, load_function, look_up

SELECTOR_TAKES = ("plan", "seen")
CRITERION_TAKES = ("statistics", "seed")
SAMPLES = 2  # that a selector is tried on
WIDTH = 16  # of their features


def use_selector(plan: TokenPlan | None, patches: int, option: str, cameras: int = 1) -> None:
    """Import the selector that a plan names, try it and make it known; ours are known already.

    Args:
        plan: of the tokens, if any are dropped.
        patches: visual tokens that there are, of all cameras.
        option: what named it, for the error.
        cameras: how many there are.

    Raises:
        ConfigError: there is no such function, it fails, or what it returns is no choice of tokens.
    """
    if plan is None or plan.selector in SELECTORS:
        return
    SELECTORS[plan.selector] = load_function(plan.selector, option, SELECTOR_TAKES)
    try:
        _try_selector(plan, patches, cameras, option)
    except BaseException:
        del SELECTORS[plan.selector]
        raise


def _try_selector(plan: TokenPlan, patches: int, cameras: int, option: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, patches, WIDTH, generator=generator)
    looked = torch.rand(SAMPLES, patches, generator=generator)
    seen = Seen(features, None if plan.scored is None else looked, cameras)
    try:
        kept = tokens.select(plan, seen)
    except Exception as error:
        raise ConfigError(f"{option}: '{plan.selector}' failed: {blame(error)}") from error
    if problem := _wrong_with(kept, plan.keep, patches):
        words = f"int64[{SAMPLES}, {plan.keep}], ascending indices below {patches}"
        raise ConfigError(f"{option}: expected {words} from '{plan.selector}', got {problem}")


def _wrong_with(kept: object, keep: int, patches: int) -> str:
    """What keeps it from being a choice of tokens; empty where nothing does."""
    if not isinstance(kept, Tensor):
        return type(kept).__name__
    if kept.dtype != torch.int64 or tuple(kept.shape) != (SAMPLES, keep):
        return f"{str(kept.dtype).removeprefix('torch.')}{list(kept.shape)}"
    if int(kept.min()) < 0 or int(kept.max()) >= patches:
        return f"indices from {int(kept.min())} to {int(kept.max())}"
    return "" if bool((kept[:, 1:] > kept[:, :-1]).all()) else "indices that do not ascend"


def find_criterion(name: str, option: str) -> Criterion:
    """A layer criterion of ours, or one of the user's own, which is imported.

    The latter raises ConfigError where it fails or does not give one finite number a layer.
    """
    found = look_up(name, CRITERIA, option, CRITERION_TAKES)
    if name in CRITERIA:
        return found

    def checked(statistics: Statistics, seed: int) -> list[float]:
        try:
            scores = found(statistics, seed)
        except Exception as error:
            raise ConfigError(f"{option}: '{name}' failed: {blame(error)}") from error
        values = scores.tolist() if isinstance(scores, Tensor) else scores
        layers = len(statistics.similarity)
        if not _is_row(values, layers):
            got = repr(scores)[:80]
            words = f"{layers} finite numbers from '{name}'"
            raise ConfigError(f"{option}: expected {words}, got {got}")
        return [float(value) for value in values]

    return checked


def _is_row(values: object, length: int) -> bool:
    if not isinstance(values, Sequence) or len(values) != length:
        return False
    return all(isinstance(each, int | float) and math.isfinite(each) for each in values)
