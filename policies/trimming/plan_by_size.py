"""A plan made from sizes alone, for weights whose values mean nothing: how much is kept, not what
is worth keeping.

Its provenance records that nothing was calibrated.
"""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec

from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.counts import plan_by_counts, trimmable
from trimvla.policies.trimming.trimmed import check
from trimvla.runtime.bundle.plan import Plan, Provenance, TokenPlan

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
    """`plan_by_counts` for a policy, checked and with its provenance; made now by default.

    Raises:
        ConfigError: more is to be kept than there is, or nothing.
    """
    counted = plan_by_counts(
        trimmable(cfg),
        layers=layers,
        mlp_keep=mlp_keep,
        tokens=tokens,
        cache_interval=cache_interval,
    )
    made = created_utc or datetime.now(timezone.utc).isoformat(timespec="seconds")
    provenance = Provenance(
        criterion=CRITERION, scores=(), calibration="none", frames=0, created_utc=made
    )
    plan = msgspec.structs.replace(counted, policy=cfg.fingerprint, provenance=provenance)
    check(plan, cfg)
    return plan
