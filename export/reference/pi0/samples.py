"""Whole samples, for the arrays of a reference directory: through the stages, from stored inputs or
from images.

Yields (key, value) as `inside` does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trimvla.export.reference.groups import Values
from trimvla.export.reference.pi0.directory import DENSE, TRAJECTORY, Pi0Reference
from trimvla.export.reference.pi0.inputs import BLACK, OLD_BLACK, square_images
from trimvla.policies.nn.flow import FlowStep, flow_sample, flow_steps
from trimvla.policies.pi0.model import CachedExpert


def trajectory(ref: Pi0Reference) -> Values:
    """x before every step and at the end, from the stored tokens; the times themselves."""
    memory = ref.memory(DENSE, ref.visual, *ref.ids("in"))
    passed = ref.sample(TRAJECTORY, DENSE, memory)
    yield "flow/x", passed[:-1]
    yield "flow/x_final", passed[-1:]


def times(ref: Pi0Reference) -> Values:
    """The times of the Euler steps."""
    yield "flow/t", np.array([step.t for step in flow_steps(ref.policy.steps)])


def normalized(ref: Pi0Reference) -> Values:
    """The action stage from the stored tokens, cut to the robot's dimensions; two prompts."""
    for prefix, ids in (("action", "in"), ("second", "second")):
        if f"{prefix}/normalized" in ref.arrays:
            memory = ref.memory(DENSE, ref.visual, *ref.ids(ids))
            yield f"{prefix}/normalized", robots(ref, ref.sample("action", DENSE, memory))


def robots(ref: Pi0Reference, sample: Tensor) -> Tensor:
    """The robot's dimensions of float[1, H, A]."""
    return sample[..., : ref.policy.cfg.action_dim]


def end_to_end(ref: Pi0Reference) -> Values:
    """From the images to actions as they are made now, through every stage."""
    images = square_images(ref, BLACK)
    visual = ref.run("vision", DENSE, images=images)["visual"]
    ids, length = ref.ids("current")
    memory = ref.memory(DENSE, visual, ids, length)
    valid = torch.arange(ids.shape[1] + visual.shape[0]) < visual.shape[0] + length
    keys = memory["keys"][-1:].transpose(1, 2)[:, : valid.shape[0]]
    yield "current/keys_last", ref.at_valid("current/keys_last", keys, (1,), valid)
    sample = ref.sample("action", DENSE, memory)
    yield "current/x_final", sample
    yield "current/normalized", robots(ref, sample)


def current(ref: Pi0Reference) -> Values:
    """The prefix and the velocities of the same call."""
    policy = ref.policy
    visual = policy.vision(square_images(ref, BLACK)).flatten(0, 1)[None]
    ids, length = ref.ids("current")
    rows = policy.language.rows(policy.language.embed(visual, ids), length, visual.shape[1])
    key = "current/prefix_embeddings"
    yield key, ref.at_valid(key, rows.x, (1,), rows.valid[0])
    field = policy.sampler(policy.language(visual, ids, length), ref.state)
    x = ref.tensor("in/noise")
    velocities = []
    for k, step in enumerate(flow_steps(policy.steps)):
        velocities.append(field(x, k))
        x = x + step.dt * velocities[-1]
    yield "current/v", torch.cat(velocities)


def old_pixels(ref: Pi0Reference) -> Values:
    """From the images to actions as LeRobot up to 0.4.4 made them, where padding becomes -3."""
    visual = ref.run("vision", DENSE, images=square_images(ref, OLD_BLACK))["visual"]
    memory = ref.memory(DENSE, visual, *ref.ids("in"))
    yield "action/normalized", robots(ref, ref.sample("action", DENSE, memory))


def openpi(ref: Pi0Reference) -> Values:
    """The sample at openpi's times, which are added up in float32."""
    steps = openpi_steps(ref.policy.steps)
    expert = ref.policy.expert
    memory = ref.policy.language(ref.visual[None], *ref.ids("in"))
    table = expert.time_table([step.t for step in steps])
    field = CachedExpert(expert, memory, table, ref.state)
    yield "openpi/x_final", flow_sample(field, ref.tensor("in/noise"), steps)


def openpi_steps(count: int) -> list[FlowStep]:
    """Steps whose times are rounded at every addition."""
    dt = np.float32(-1.0 / count)
    t = np.float32(1.0)
    steps = []
    for step in flow_steps(count):
        steps.append(FlowStep(float(t), float(dt), step.to_actions, step.pull))
        t = np.float32(t + dt)
    return steps
