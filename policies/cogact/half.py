"""A policy in half precision: matrices in float16 or bfloat16, and in float32 what half precision
would break.

Norms, softmax, the cosines that choose tokens and the sampler's state stay in float32, as do the
tensors that leave a stage. The casts stand in the modules, so torch, a traced graph and an engine
built from it compute the same types: a strongly typed network needs no flag. Knows no file; a
policy without values, on the meta device, is welcome.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor, nn

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.dit import FinalLayer
from trimvla.policies.nn.llama import RmsNorm

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm in float32, its weights too; the input's type comes out."""

    def forward(self, input: Tensor) -> Tensor:
        """half[..., width] -> the same."""
        return super().forward(input.float()).to(input.dtype)


class WideRmsNorm(RmsNorm):
    """RMSNorm in float32, its weight too; the input's type comes out."""

    def forward(self, x: Tensor) -> Tensor:
        """half[..., width] -> the same."""
        return super().forward(x.float()).to(x.dtype)


class LastRmsNorm(RmsNorm):
    """RMSNorm whose output leaves the stage: float32."""

    def forward(self, x: Tensor) -> Tensor:
        """half[..., width] -> float32[..., width]."""
        return super().forward(x.float())


class WideFinalLayer(FinalLayer):
    """The map back to actions; the predicted noise meets the sampler's state in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """half[b, n, width] -> float32[b, n, A]."""
        return super().forward(x).float()


class Widen(nn.Module):
    """Half in, float32 out."""

    def forward(self, x: Tensor) -> Tensor:
        """half[...] -> float32[...]."""
        return x.float()


WIDE: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: WideLayerNorm,
    RmsNorm: WideRmsNorm,
    FinalLayer: WideFinalLayer,
}


def in_precision(policy: CogAct, dtype: torch.dtype) -> CogAct:
    """The policy, dense or trimmed, with its weights in `dtype` and norms in float32; itself where
    that is float32.
    """
    if dtype == torch.float32:
        return policy
    made = _convert(policy, dtype)
    assert isinstance(made, CogAct)
    made.vision.projector.append(Widen())
    made.language.norm.__class__ = LastRmsNorm
    return made


def _convert(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A converted copy of the module and of all its parts.

    The wide kinds only differ in `forward`.
    """
    made = copy(module)
    made.__class__ = WIDE.get(type(module), type(module))
    own = torch.float32 if isinstance(module, (nn.LayerNorm, RmsNorm)) else dtype
    made._parameters = {
        name: None if weight is None else _as(weight, own)
        for name, weight in module._parameters.items()
    }
    made._modules = {
        name: None if part is None else _convert(part, dtype)
        for name, part in module._modules.items()
    }
    return made


def _as(weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
