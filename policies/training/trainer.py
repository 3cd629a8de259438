"""Behaviour cloning of a policy of the CogACT shape, resumable.

Loss: noise prediction of the action chunk, and read-outs of object, target and tool positions, of
the turn that the chunk makes and of whatever else the shards hold, from the words' final states (an
auxiliary head that is not deployed). Several sentences share a picture; visual tokens and layers
are dropped at random. What is random is drawn on the CPU, so that a run means the same on every
device. A run's state lives in one file that is replaced atomically. Knows shards and modules; knows
no simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trimvla.policies.cogact.initialise import initialise
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.diffusion import q_sample
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.training.dataset import Batch
from trimvla.policies.training.dropping import blob_dropout, block_order, patch_dropout, spread
from trimvla.policies.training.optimised import AuxHead, Optimised, train
from trimvla.policies.training.packed import packed_states, shared_prefix, take_last
from trimvla.policies.training.state import Origin

__all__ = ["Recipe", "Trainer", "train"]


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes the result besides config and data."""

    steps: int = 4300
    pictures: int = 24
    sentences: int = 4
    draws: int = 2  # noise draws per cognition feature
    learning_rate: float = 8e-4
    weight_decay: float = 0.02
    warmup: int = 200
    ema: float = 0.998
    # what each action dimension counts in the loss; all alike where there is none
    emphasis: tuple[float, ...] = ()
    aux_weight: float = 2.0
    pointer_weight: float = 0.3
    pointer_layer: int = 4  # whose first head is taught to point from a noun to its thing
    drop_condition: float = 0.1
    drop_layer: float = 0.15
    # kept tokens, share of the batches
    tokens: tuple[tuple[int, float], ...] = ((64, 0.4), (128, 0.45), (256, 0.15))
    # share of the batches in which the encoders see only half of the patches (or those kept)
    glimpse: float = 0.0
    thin: float = 0.4  # share of the batches that lose more tokens on the way
    thin_layer: int = 5  # at whose input: the words have found their things
    seed: int = 0
    bfloat16: bool = True  # where the device computes in it; float32 elsewhere
    compile: bool = True


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device is quick in bfloat16: one without AVX-512 takes a hundred times as long."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class Trainer(Optimised):
    """Policy, its average, auxiliary head and optimiser, advanced step by step on a device."""

    def __init__(
        self, cfg: PolicyConfig, recipe: Recipe, aux_outputs: int, device: str = "cpu"
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.cfg = cfg
        self.policy = initialise(CogAct(cfg))
        self.aux = AuxHead(cfg.language.width, aux_outputs)
        super().__init__(nn.ModuleDict({"policy": self.policy, "aux": self.aux}), recipe, device)
        self.recipe: Recipe = recipe
        self.bfloat16 = recipe.bfloat16 and computes_in_bfloat16(self.device)
        if recipe.compile:
            self._compile()

    def _compile(self) -> None:
        """Compile block by block: quick to compile, and any subset of layers reuses the code."""
        blocks = [*self.policy.language.layers, *self.policy.head.blocks]
        for encoder in self.policy.vision.encoders:
            blocks += list(encoder.blocks)  # pyright: ignore[reportArgumentType]
        for block in blocks:
            block.compile(dynamic=False)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """See `Optimised.total`."""
        loss = losses["diffusion"] + self.recipe.aux_weight * losses["aux"]
        return loss + self.recipe.pointer_weight * losses["pointer"]

    def losses(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """See `Optimised.losses`."""
        common = own_words_from(batch)
        seen, keep, skip = self._dropped(self.cfg.patches, rng)
        thin = self._thinned(self.cfg.patches, keep, rng)
        batch = batch.to(self.device)
        seen = self._there(seen)
        keep = self._there(keep)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            tower = self.policy.vision
            visual = (
                tower(batch.image)
                if seen is None
                else patch_dropout(tower, batch.image, seen, self.cfg.patches)
            )
            states, scores = packed_states(
                self.policy.language,
                visual,
                batch.ids,
                keep=keep,
                skip=skip,
                pointer=self.recipe.pointer_layer,
                thin=thin,
                common=common,
            )
            z = take_last(states, batch.last, common)
            readings = self.aux(states).float()
            epsilon, noise = self._denoise(z.flatten(0, 1), batch.actions.flatten(0, 1))
        target = scale_aux(batch.aux)
        error = (take_last(readings, batch.last, common) - target).abs()
        return {
            "diffusion": self._denoising_loss(epsilon, noise),
            "aux": aux_loss(readings, target, aux_mask(batch, common, readings.shape[2])),
            "pointer": pointer_loss(scores, batch, common, keep, visual.shape[1]),
            "object_cm": error[..., :2].mean() * AUX_SCALE * 100,
            "target_cm": error[..., 2:4].mean() * AUX_SCALE * 100,
            "tool_cm": error[..., 4:7].mean() * AUX_SCALE * 100,
            "turn_rad": error[..., -1].mean() / TURN_WEIGHT,
        }

    def _there(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(self.device)

    def _dropped(
        self, patches: int, rng: np.random.Generator
    ) -> tuple[Tensor | None, Tensor | None, frozenset[int]]:
        """Patches that the encoders see, visual tokens that stay (None: all of them), layers that
        are left out.
        """
        counts, shares = zip(*self.recipe.tokens, strict=True)
        count = int(rng.choice(counts, p=shares))
        order = block_order(patches, rng)
        keep = None if count == patches else torch.from_numpy(spread(order, count))
        seen = None
        if keep is not None and rng.random() < self.recipe.glimpse:
            seen = torch.from_numpy(spread(order, max(count, patches // 2)))
        layers = self.cfg.language.layers
        chance = self.recipe.drop_layer * self._ramp()
        skip = (
            i
            for i in range(2, layers - 1)
            if rng.random() < chance and i != self.recipe.pointer_layer
        )
        return seen, keep, frozenset(skip)

    def _thinned(
        self, patches: int, keep: Tensor | None, rng: np.random.Generator
    ) -> tuple[int, Tensor] | None:
        """Tokens that stay from a layer on: unlike the first choice, whole regions go, as with a
        selector.
        """
        if rng.random() >= self.recipe.thin:
            return None
        places = np.arange(patches) if keep is None else keep.numpy()
        stay = blob_dropout(patches, places, thinned_count(len(places), patches), rng)
        return self.recipe.thin_layer, torch.from_numpy(stay).to(self.device)

    def _ramp(self) -> float:
        """0 while the policy finds out what words mean, 1 from the middle of the run on."""
        return min(1.0, max(0.0, self.step / self.recipe.steps - 0.2) / 0.3)

    def _denoise(self, z: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true noise for `draws` noisy versions of every chunk."""
        z = z.repeat(self.recipe.draws, 1)
        actions = actions.repeat(self.recipe.draws, 1, 1)
        dropped = (torch.rand(len(z), 1) < self.recipe.drop_condition).to(self.device)
        z = torch.where(dropped, self.policy.head.uncondition.to(z.dtype), z)
        t = torch.randint(self.cfg.diffusion.train_steps, (len(z),)).to(self.device)
        noise = torch.randn(actions.shape).to(self.device)
        noisy = q_sample(actions, t, noise, self.cfg.diffusion.train_steps)
        return self.policy.head(noisy, t, z), noise

    def _denoising_loss(self, epsilon: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of float[n, H, A], its dimensions weighted by the recipe's
        emphasis.
        """
        error = (epsilon.float() - noise).square().mean(dim=(0, 1))
        weights = error.new_tensor(self.recipe.emphasis or (1.0,) * len(error))
        return (weights * error).sum() / weights.sum()

    def averaged_policy(self) -> CogAct:
        """A copy of the policy with the averaged weights."""
        policy = CogAct(self.cfg)
        policy.load_state_dict(self.averaged("policy"))
        return policy.eval()

    def start_from(self, policy: CogAct, origin: Origin | None = None) -> None:
        """Take a trained policy's weights, whose file is `origin`.

        The auxiliary head and the optimiser start anew.
        """
        self.origin = origin
        self.policy.load_state_dict(policy.state_dict())
        self.average = self.snapshot()


POSITIONS = 7  # of the auxiliary numbers come first: object x y, target x y, tool x y z [m]
AUX_SCALE = 0.2  # metres that make 1.0 in the auxiliary loss
TURN_WEIGHT = 3.0  # of a radian in the auxiliary loss
POINTER_SIGMA = 0.8  # patches
# of so many tokens (of 256 patches) so many stay; between them, straight
THINNED = {0: 0, 64: 24, 128: 40, 256: 56}


def thinned_count(tokens: int, patches: int) -> int:
    """How many of so many tokens stay where a batch is thinned, for any number of both; at least
    one.
    """
    stay = np.interp(tokens * 256 / patches, list(THINNED), list(THINNED.values())) * patches / 256
    return max(1, round(float(stay)))


def aux_mask(batch: Batch, common: int, length: int) -> Tensor:
    """bool[b, k, length, X]: what each token can know: the object from its noun on, the target from
    its own, the rest.

    Asking every token, not only EOS, teaches words to find their thing in the picture directly.
    """
    place = torch.arange(common, common + length, device=batch.last.device)
    inside = place <= batch.last[..., None]
    objects, targets = (inside & (place >= batch.nouns[..., i, None]) for i in (0, 1))
    rest = batch.aux.shape[-1] - 4
    return torch.stack([objects, objects, targets, targets, *[inside] * rest], dim=-1)


def own_words_from(batch: Batch) -> int:
    """Ids that count as shared: at most those before the word in front of the first noun, which
    must be distinguished.
    """
    return max(1, min(shared_prefix(batch.ids), int(batch.nouns.min()) - 1))


def pointer_loss(
    scores: Tensor, batch: Batch, common: int, keep: Tensor | None, patches: int
) -> Tensor:
    """Cross entropy between where the nouns, and the adjectives before them, look and where their
    things are.

    Args:
        scores: float[b, k, n, P'] of the words for the kept visual tokens.
        batch: its `nouns` and `points`.
        common: ids that all prompts share.
        keep: int64[P'], raster indices (None: all).
        patches: P, a square.
    """
    side = math.isqrt(patches)
    place = torch.arange(patches, device=scores.device) if keep is None else keep
    centre = torch.stack([place % side, place // side], dim=-1) + 0.5
    distance = (batch.points[..., None, :] * side - centre).square().sum(-1)
    truth = torch.softmax(-distance / (2 * POINTER_SIGMA**2), dim=-1)
    rows = torch.cat([batch.nouns, batch.nouns - 1], dim=-1)[..., None] - common
    looks = (
        scores.float().gather(2, rows.expand(*rows.shape[:-1], scores.shape[-1])).log_softmax(-1)
    )
    return -(torch.cat([truth, truth], dim=2) * looks).sum(-1).mean()


def aux_loss(readings: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean smooth L1 of float[b, k, n, X] readings against [b, k, X] where the mask allows."""
    error = nn.functional.smooth_l1_loss(
        readings, target[:, :, None].expand_as(readings), beta=0.05, reduction="none"
    )
    return (error * mask).sum() / mask.sum()


def scale_aux(aux: Tensor) -> Tensor:
    """Positions [m] to about [-1, 1]; opening and angles stay as they are, the turn [rad] counts
    more.
    """
    positions = aux[..., :POSITIONS] / AUX_SCALE
    others = aux[..., POSITIONS:-1]
    return torch.cat([positions, others, aux[..., -1:] * TURN_WEIGHT], dim=-1)
