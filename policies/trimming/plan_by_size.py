"""A plan made from sizes alone, for weights whose values say nothing: how much is kept, not what is
worth keeping.

Layers are spread evenly and the first MLP channels stay; its provenance says that nothing was
calibrated.
"""

from __future__ import annotations

from datetime import datetime, timezone

from trimvla.policies.nn.cachers import every
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.cost import kept_count, shape_by_counts
from trimvla.policies.trimming.trimmed import check
from trimvla.runtime.bundle.plan import Plan, Provenance, TokenPlan, mask

CRITERION = "sizes alone"


def plan_by_sizes(
    cfg: PolicyConfig,
    *,
    layers: int | None = None,
    mlp_keep: float = 1.0,
    tokens: TokenPlan | None = None,
    cache_interval: int = 1,
    created_utc: str | None = None,
) -> Plan:
    """The plan that keeps so many layers, such a share of their MLP channels, and so on; made now
    by default.

    Raises:
        ConfigError: more is to be kept than there is, or nothing.
    """
    language = cfg.language
    steps = cfg.diffusion.inference_steps
    shape = shape_by_counts(
        cfg, layers=layers, mlp_keep=mlp_keep, tokens=tokens, cache_interval=cache_interval
    )
    kept = len(shape.mlp)
    channels = mask(range(kept_count(language.mlp_hidden, mlp_keep)))
    made = created_utc or datetime.now(timezone.utc).isoformat(timespec="seconds")
    plan = Plan(
        policy=cfg.fingerprint,
        layers=None if kept == language.layers else spread(language.layers, kept),
        channels=None if mlp_keep == 1.0 else (channels,) * kept,
        tokens=tokens,
        recompute=None if cache_interval == 1 else every(cache_interval, steps),
        provenance=Provenance(
            criterion=CRITERION, scores=(), calibration="none", frames=0, created_utc=made
        ),
    )
    check(plan, cfg)
    return plan


def spread(count: int, kept: int) -> tuple[int, ...]:
    """`kept` of `count` indices at even distances, the first and the last among them (of one: the
    first).
    """
    return tuple(round(i * (count - 1) / max(1, kept - 1)) for i in range(kept))
