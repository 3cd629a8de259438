"""What the policy's modules give for the arrays of a reference directory.

Each function yields (key, value) for the keys of one part, fed with the *stored* inputs of that
part, so a difference points at the part that made it. Which keys are compared, and how closely, is
decided in `reference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.export.reference.directory import Reference
from trimvla.export.reference.groups import Values
from trimvla.policies.nn.diffusion import betas, ddim_trajectory, guided
from trimvla.policies.nn.dit import frequency_embedding


def vision(ref: Reference) -> Values:
    """Features of each encoder from the stored pixels; projected tokens from the stored
    features.
    """
    for name, vit in ref.encoders:
        yield f"vision/{name}_features", vit(ref.tensor(f"in/pixel_{name}"))
    features = [ref.tensor(f"vision/{name}_features") for name, _ in ref.encoders]
    yield "vision/projected", ref.policy.vision.project(features)


def layers(ref: Reference) -> Values:
    """The sequence from the stored tokens; every decoder layer from the stored sequence."""
    decoder = ref.policy.language
    yield (
        "llm/inputs_embeds",
        decoder.embed(ref.tensor("vision/projected"), ref.tensor("in/input_ids")[None]),
    )
    states = decoder.hidden_states(ref.tensor("llm/inputs_embeds"))
    yield "llm/layer_outputs", torch.cat(states)
    yield "llm/final_normed", decoder.norm(states[-1])


def cognition(ref: Reference) -> Values:
    """The cognition feature as deployed: the last layer computes its position only."""
    ids = ref.tensor("in/input_ids")[None]
    last = torch.tensor([ids.shape[1] - 1])
    feature = ref.policy.language.cognition(ref.tensor("vision/projected"), ids, last)
    yield "llm/cognition_feature", feature
    yield "dit/z_cond", feature[:, None]


def dit(ref: Reference) -> Values:
    """Noise predictions at the stored timesteps, with and without guidance, and what lies inside
    the network.
    """
    net = ref.policy.head
    noise = ref.tensor("action/noise")
    z = ref.tensor("dit/z_cond")[:, 0]
    yield "dit/z_uncond", net.uncondition[:, None]
    for key, match in ref.matches(r"dit/t(\d+)/(?:(cond|uncond)|cfg([\d.]+))"):
        t = int(match[1])
        if match[3]:
            yield key, guided(net, z, float(match[3]))(noise, t)
        else:
            yield key, net(noise, torch.tensor([t]), z if match[2] == "cond" else net.uncondition)
    yield from _dit_embeddings(ref)
    yield from _dit_internals(ref)


def _dit_embeddings(ref: Reference) -> Values:
    """Timestep embeddings, for the timesteps in the key's name."""
    embedder = ref.policy.head.t_embedder
    for key, match in ref.matches(r"dit/t(_freq)?_embedding((?:_\d+)+)"):
        t = torch.tensor([int(part) for part in match[2].strip("_").split("_")])
        yield key, frequency_embedding(t, embedder.frequency) if match[1] else embedder(t)


def _dit_internals(ref: Reference) -> Values:
    """Tokens in, and every block's outputs, for the batch [conditional, unconditional]."""
    net = ref.policy.head
    noise = ref.tensor("action/noise")
    z = torch.cat([ref.tensor("dit/z_cond")[:, 0], net.uncondition])
    for _, match in ref.matches(r"dit/t(\d+)/tokens_in"):
        prefix = f"dit/t{match[1]}"
        t = torch.full((2,), int(match[1]))
        yield f"{prefix}/tokens_in", net.embed(noise.expand(2, -1, -1), t, z)
        for name, part in (("block", None), ("attn", "attn"), ("mlp", "mlp")):
            modules = [block.get_submodule(part) if part else block for block in net.blocks]
            with recorded(modules) as outputs:
                net(noise.expand(2, -1, -1), t, z)
            yield f"{prefix}/{name}_outputs", torch.stack(outputs)


@contextmanager
def recorded(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the outputs of the modules, in the order in which they run."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def schedule(ref: Reference) -> Values:
    """The diffusion schedule, and the table of each sampler run, in float64."""
    for key, match in ref.matches(r"diffusion/betas(\d+)"):
        yield key, np.array(betas(int(match[1])))
    for key, match in ref.matches(r"action/([^/]+)/timesteps"):
        steps, _ = ref.sampler(match[1])
        prefix = key.removesuffix("/timesteps")
        yield key, np.array([step.t for step in steps])
        yield f"{prefix}/alphas_cumprod", np.array([step.kept for step in steps])
        yield f"{prefix}/alphas_cumprod_prev", np.array([step.kept_next for step in steps])


def ddim(ref: Reference) -> Values:
    """Trajectories of the sampler from the stored noise and cognition feature."""
    noise = ref.tensor("action/noise")
    z = ref.tensor("dit/z_cond")[:, 0]
    for key, match in ref.matches(r"action/([^/]+)/x"):
        steps, guidance = ref.sampler(match[1])
        trajectory = list(ddim_trajectory(guided(ref.policy.head, z, guidance), noise, steps))
        yield key, torch.cat([noise, *(x for x, _ in trajectory)])
        yield f"{key.removesuffix('/x')}/pred_xstart", torch.cat([x0 for _, x0 in trajectory])
