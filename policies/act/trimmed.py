"""An ACT policy under a plan: fewer encoder layers, narrower MLPs; all else is shared with the
dense policy.

Decides nothing: decisions come in as a `Plan`.
"""

from __future__ import annotations

from copy import copy

from torch import nn

from trimvla.policies.act.kept import channels, check
from trimvla.policies.act.layers import EncoderLayer
from trimvla.policies.act.model import Act, Encoder
from trimvla.runtime.bundle.plan import Plan


def trim(policy: Act, plan: Plan) -> Act:
    """The policy under the plan; the dense policy itself where the plan keeps everything.

    Raises:
        ConfigError: the plan is for another config, or needs what this one does not have.
    """
    check(plan, policy.cfg)
    if plan.dense:
        return policy
    encoder = trim_encoder(policy.encoder, policy, plan)
    made = Act(policy.cfg, policy.vision, encoder, policy.decoder, plan)
    return made.train(policy.training)


def trim_encoder(dense: Encoder, policy: Act, plan: Plan) -> Encoder:
    """Kept layers at kept widths."""
    layers: list[nn.Module] = []
    for index, kept in channels(plan, policy.cfg).items():
        layer = dense.layers[index]
        assert isinstance(layer, EncoderLayer)
        layers.append(layer if kept is None else layer.narrowed(kept))
    made = copy(dense)
    made._modules = {**dense._modules, "layers": nn.ModuleList(layers)}
    return made
