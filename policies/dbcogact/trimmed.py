"""A DB-CogACT policy under a plan: fewer layers, narrower MLPs, fewer tokens, reused features.

The decoder is `trimming.trimmed_language`'s; the text in front of the image is folded in anew,
for other layers give other keys and values. Weights that a plan keeps whole are shared with the
dense policy. Decides nothing.
"""

from __future__ import annotations

from torch import nn

from trimvla.policies.dbcogact.config import DbCogActConfig
from trimvla.policies.dbcogact.model import DbCogAct
from trimvla.policies.trimming import trimmed
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.bundle.plan import DISTILLED, Plan
from trimvla.runtime.errors import ConfigError

PARTS = trimmed.PARTS | {"tokens.quotas", "tokens.floor"}
"""What of a plan this family knows: several cameras share the tokens that are kept."""


class TrimmedDbCogAct(DbCogAct):
    """A policy under a plan; built by `trim`."""

    def __init__(self, dense: DbCogAct, plan: Plan) -> None:
        """Share what the plan keeps of `dense`."""
        nn.Module.__init__(self)
        self.cfg = dense.cfg
        self.plan = plan
        self.vision = dense.vision
        self.head = dense.head
        self.language = TrimmedDecoder(dense.language, plan)
        self.fold()
        self.train(dense.training)


def trim(policy: DbCogAct, plan: Plan) -> DbCogAct:
    """The policy under the plan; the dense policy itself where the plan keeps everything.

    Raises:
        ConfigError: the plan is for another config, or needs what this one does not have.
    """
    check(plan, policy.cfg)
    return policy if plan.dense else TrimmedDbCogAct(policy, plan)


def check(plan: Plan, cfg: DbCogActConfig) -> None:
    """Whether the plan fits the config. ConfigError names the field where it does not."""
    trimmed.check(plan, cfg, PARTS)  # pyright: ignore[reportArgumentType]
    if plan.guidance == DISTILLED:
        raise ConfigError(
            f"expected a scale for 'guidance', got '{DISTILLED}': heads of this family are not"
            " recovered"
        )
    tokens = plan.tokens
    if tokens is None:
        return
    cameras = len(cfg.cameras)
    one = cfg.vision.patches
    if tokens.quotas is not None and len(tokens.quotas) != cameras:
        raise ConfigError(
            f"expected 'quotas' of 'tokens' for {cameras} camera(s), got {list(tokens.quotas)}"
        )
    if tokens.quotas is not None and max(tokens.quotas) > one:
        raise ConfigError(
            f"expected at most {one} tokens of a camera for 'quotas' of 'tokens', "
            f"got {list(tokens.quotas)}"
        )
    if tokens.floor * cameras > tokens.keep or tokens.floor > one:
        raise ConfigError(
            f"expected a 'floor' of 'tokens' that {cameras} camera(s) of {one} tokens have within "
            f"'keep' {tokens.keep}, got {tokens.floor}"
        )
