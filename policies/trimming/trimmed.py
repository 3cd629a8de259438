"""A policy under a plan, in torch: fewer layers, narrower MLPs, fewer tokens, reused action
features.

`trim` gives a policy with the same parts and the same methods, so that whatever runs or exports a
dense policy runs or exports a trimmed one. Weights that a plan keeps whole are shared with the
dense policy, not copied. Decides nothing: decisions come in as a `Plan`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.cachers import CachedDit
from trimvla.policies.nn.diffusion import Known, ddim_sample, timesteps
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.policies.trimming.trimmed_vision import TrimmedTower, seen_patches
from trimvla.runtime.bundle.plan import DISTILLED, Plan, TokenPlan, check_parts, unmask
from trimvla.runtime.bundle.vision_plan import PatchPlan
from trimvla.runtime.errors import ConfigError

PARTS = frozenset(
    {"layers", "channels", "recompute", "steps", "guidance", "tokens"}
    | {f"tokens.{field}" for field in TokenPlan.__struct_fields__}
) - {"tokens.quotas", "tokens.floor"}
"""What of a plan every policy of this shape knows: its head has no layers of its own."""
WITH_PATCHES = PARTS | {
    "vision",
    "vision.patches",
    *(f"vision.patches.{field}" for field in PatchPlan.__struct_fields__),
}
"""What of a plan this family knows: it looks through one camera."""


def trim(policy: CogAct, plan: Plan) -> CogAct:
    """The policy under the plan; the dense policy itself where the plan keeps everything.

    Raises:
        ConfigError: the plan is for another config, or needs what this one does not have.

    Example:
        >>> from trimvla.policies import load_policy, trim
        >>> from trimvla.runtime import Plan, find_bundle
        >>> dense = load_policy(find_bundle("tabletop").with_suffix(".safetensors"))
        >>> trimmed = trim(dense, Plan(layers=(0, 1, 2, 5)))
        >>> len(dense.language.layers), len(trimmed.language.layers)
        (16, 4)
    """
    check(plan, policy.cfg)
    return policy if plan.dense else TrimmedCogAct(policy, plan)


def check(plan: Plan, cfg: PolicyConfig, parts: frozenset[str] = WITH_PATCHES) -> None:
    """Whether the plan fits the config, and needs nothing but these `parts`.

    Raises:
        ConfigError: it does not; the message names the field.
    """
    if plan.policy not in (None, cfg.fingerprint):
        raise ConfigError(
            f"expected a plan for policy '{cfg.name}' ({cfg.fingerprint}), got one for"
            f" {plan.policy}"
        )
    check_parts(plan, parts, cfg.name)
    layers = kept_layers(plan, cfg)
    if layers[-1] >= cfg.language.layers:
        raise ConfigError(f"expected 'layers' below {cfg.language.layers}, got {layers[-1]}")
    if plan.channels is not None:
        _check_channels(plan.channels, len(layers), cfg.language.mlp_hidden)
    visual = cfg.patches
    if plan.vision is not None and plan.vision.patches is not None:
        _check_patches(plan.vision.patches, cfg)
        visual = plan.vision.patches.keep
    if plan.tokens is not None:
        _check_tokens(plan.tokens, len(layers), visual)
    if plan.guidance == DISTILLED and cfg.diffusion.guidance <= 1.0:
        raise ConfigError(
            f"expected a policy with guidance, which could be distilled, got '{cfg.name}' with a"
            f" scale of {cfg.diffusion.guidance:g}"
        )
    steps = sampler_steps(plan, cfg)
    timesteps(cfg.diffusion.train_steps, steps)
    if plan.recompute is not None and plan.recompute[-1] >= steps:
        raise ConfigError(
            f"expected 'recompute' below {steps} (the DDIM steps), got {plan.recompute[-1]}"
        )


def _check_channels(channels: Sequence[str], layers: int, hidden: int) -> None:
    if len(channels) != layers:
        raise ConfigError(f"expected 'channels' for {layers} kept layers, got {len(channels)}")
    highest = max(unmask(text)[-1] for text in channels)
    if highest >= hidden:
        raise ConfigError(f"expected 'channels' below {hidden}, got {highest}")


def _check_patches(patches: PatchPlan, cfg: PolicyConfig) -> None:
    if patches.keep > cfg.patches:
        raise ConfigError(
            f"expected at most {cfg.patches} for 'keep' of 'vision.patches', got {patches.keep}"
        )
    blocks = min(vit.feature_block + 1 for vit in cfg.vision)
    if patches.after >= blocks:
        raise ConfigError(
            f"expected at most {blocks - 1} for 'after' of 'vision.patches', a block fewer than"
            f" the shortest encoder has, got {patches.after}"
        )


def _check_tokens(tokens: TokenPlan, layers: int, patches: int) -> None:
    for name, value, absent in (
        ("rows", tokens.rows, "state"),
        ("source", tokens.source, "expert"),
    ):
        if value == absent:
            words = f"'{name}' of 'tokens' that this policy has"
            raise ConfigError(
                f"expected {words}: it has neither a state nor an action expert, got {value!r}"
            )
    if tokens.keep > patches:
        raise ConfigError(f"expected at most {patches} visual tokens to keep, got {tokens.keep}")
    if tokens.after >= layers:
        raise ConfigError(
            f"expected fewer layers before tokens are dropped than the {layers} kept, got"
            f" {tokens.after}"
        )


def kept_layers(plan: Plan, cfg: PolicyConfig) -> tuple[int, ...]:
    """Indices of the language layers that run."""
    return tuple(range(cfg.language.layers)) if plan.layers is None else plan.layers


def sampler_steps(plan: Plan, cfg: PolicyConfig) -> int:
    """DDIM steps."""
    return cfg.diffusion.inference_steps if plan.steps is None else plan.steps


class TrimmedCogAct(CogAct):
    """A policy under a plan; built by `trim`."""

    def __init__(self, dense: CogAct, plan: Plan) -> None:
        """Share what the plan keeps of `dense`."""
        nn.Module.__init__(self)
        self.cfg = dense.cfg
        self.plan = plan
        seen = seen_patches(plan, dense.cfg.patches)
        dropped = None if plan.vision is None else plan.vision.patches
        self.vision = dense.vision
        if dropped is not None and seen is not None:
            self.vision = TrimmedTower(dense.vision, dropped, seen)
        self.head = dense.head
        self.language = TrimmedDecoder(dense.language, plan, seen, dense.cfg.patches)
        self.train(dense.training)

    def act(self, cognition: Tensor, noise: Tensor, known: Known | None = None) -> Tensor:
        """See `CogAct.act`; with the plan's steps, guidance and schedule."""
        plan = self.plan
        diffusion = self.cfg.diffusion
        return ddim_sample(
            self.head if plan.recompute is None else CachedDit(self.head, plan.recompute),
            cognition,
            noise,
            train_steps=diffusion.train_steps,
            steps=sampler_steps(plan, self.cfg),
            guidance=plan.guidance_scale(diffusion.guidance),
            known=known,
        )
