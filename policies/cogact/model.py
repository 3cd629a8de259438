"""The whole policy: vision tower, decoder and action head, joined.

`forward` is the deployed computation; its three parts are the three exported stages. Sizes: P
visual tokens, D language width, H x A action chunk. Preprocessing to the square image and to ids
happens outside, as does un-normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn

from trimvla.policies.nn.diffusion import Known, ddim_sample
from trimvla.policies.nn.dit import Dit
from trimvla.policies.nn.llama import Decoder
from trimvla.policies.nn.vision import VisionTower
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.runtime.bundle.plan import Plan


class CogAct(nn.Module):
    """A vision-language-action policy of the CogACT shape; `plan` is what is kept of it
    (`trimmed.trim`).
    """

    def __init__(self, cfg: PolicyConfig) -> None:
        """Build the modules with torch's default weights: load a checkpoint, or call `initialise`
        before training.
        """
        super().__init__()
        self.cfg = cfg
        self.plan = Plan()
        self.vision = VisionTower(cfg)
        self.language = Decoder(cfg.language)
        self.head = Dit(cfg.head, condition=cfg.language.width)

    def act(self, cognition: Tensor, noise: Tensor, known: Known | None = None) -> Tensor:
        """float[b, D], float[b, H, A] -> float[b, H, A]: sample with the configured steps; `known`
        rows guide it.
        """
        diffusion = self.cfg.diffusion
        return ddim_sample(
            self.head,
            cognition,
            noise,
            train_steps=diffusion.train_steps,
            steps=diffusion.inference_steps,
            guidance=diffusion.guidance,
            known=known,
        )

    def forward(self, image: Tensor, input_ids: Tensor, last: Tensor, noise: Tensor) -> Tensor:
        """One image and prompt to one action chunk.

        Args:
            image: uint8[b, S, S, 3] RGB, already resized.
            input_ids: int64[b, L], BOS first, padded on the right.
            last: int64[b], index of EOS in input_ids.
            noise: float[b, H, A], standard normal.

        Returns:
            float[b, H, A], normalised and not clipped.
        """
        return self.act(self.language.cognition(self.vision(image), input_ids, last), noise)
