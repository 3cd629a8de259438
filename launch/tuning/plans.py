"""Points -> plans of one policy: nested orders of layers and channels, measured once.

The order of the layers takes minutes and is kept; everything else is measured anew. Knows the
planner; times and plays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from trimvla.launch.tuning.points import Point, patch_plan, token_plan
from trimvla.policies.cogact.family import FAMILY
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.counts import Trimmable, trimmable
from trimvla.policies.trimming.calibrate import (
    Calibration,
    Statistics,
    measure,
    samples_of,
    sequences,
)
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.planner import Request, channels, draft
from trimvla.policies.trimming.trimmed import check, kept_layers
from trimvla.runtime.bundle.plan import Plan, Provenance


@dataclass(frozen=True)
class NestedPlans:
    """One policy's plans."""

    policy: CogAct
    statistics: Statistics
    outputs: Outputs
    scores: Sequence[float]
    """Of the layers; the highest stay."""
    provenance: Provenance

    @property
    def there(self) -> Trimmable:
        """What points refer to."""
        return trimmable(self.policy.cfg)

    def plan(self, point: Point) -> Plan:
        """The plan of a point. ConfigError where it does not fit the policy."""
        cfg = self.policy.cfg
        there = self.there
        blocks = min(vit.feature_block + 1 for vit in cfg.vision)
        request = Request(
            layers=None if point.layers == there.layers else point.layers,
            tokens=token_plan(point, there),
            patches=patch_plan(point, there, blocks),
            cache_interval=point.cache_interval,
        )
        plan = draft(request, cfg, self.scores)
        layers = kept_layers(plan, cfg)
        masks = None
        if point.mlp_keep != 1.0:
            masks = channels(self.policy.language, self.statistics, layers, point.mlp_keep)
        plan = msgspec.structs.replace(
            plan, policy=cfg.fingerprint, channels=masks, provenance=self.provenance
        )
        check(plan, cfg)
        return plan

    def distance(self, point: Point) -> float:
        """How far a point's action chunks lie from the dense ones, under the dense sampler: what a
        cache moves is no sign of play.
        """
        return self.outputs.distance(
            msgspec.structs.replace(self.plan(point), recompute=None), "chunk"
        )


def measured(policy: CogAct, data: Calibration, seed: int) -> tuple[Statistics, Outputs]:
    """What the orders are made of."""
    outputs = Outputs(FAMILY, policy, samples_of(data), seed)
    return measure(policy.language, sequences(policy, data)), outputs
