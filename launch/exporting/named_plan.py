"""The plan of `--plan`: read, and a token selector of the user's own that it names made known.

The one place that imports what a plan names: the plan is the user's, who has typed its path. For
the plan in a bundle's manifest the selector itself must be named. Knows plans; decides nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimvla.policies.families import parse_config, visual_tokens
from trimvla.policies.trimming.own import use_selector
from trimvla.runtime.bundle.manifest import Manifest
from trimvla.runtime.bundle.plan import Plan, load_plan
from trimvla.runtime.errors import ConfigError


def named_plan(path: Path | None, cfg: Any) -> Plan:  # noqa: ANN401
    """The plan at this path, for this policy; without one, everything is kept.

    Raises ConfigError for what is no plan, or a selector that is not to be had or does not work.
    """
    if path is None:
        return Plan()
    plan = load_plan(path)
    if plan.tokens is not None:
        use_selector(plan.tokens, visual_tokens(cfg, plan), f"{path}: tokens.selector")
    return plan


def use_named_selector(selector: str | None, manifest: Manifest) -> None:
    """Import the token selector of a bundle's plan because a person named it.

    Raises ConfigError where the bundle's plan names another one, or none.
    """
    if selector is None:
        return
    tokens = manifest.plan.tokens
    if tokens is None or tokens.selector != selector:
        named = "none" if tokens is None else repr(tokens.selector)
        words = f"the token selector of bundle '{manifest.name}', {named}"
        raise ConfigError(f"expected {words}, for --selector, got {selector!r}")
    use_selector(tokens, visual_tokens(parse_config(manifest.policy), manifest.plan), "--selector")
