"""A policy that sees a window begins with the weights of one that saw the whole picture."""

from __future__ import annotations

from pathlib import Path

import torch

from trimvla.launch.training.presets import training_presets
from trimvla.launch.training.regrid import move_places, regrid, start_in_window, stretch_filters
from trimvla.policies.cogact import checkpoint
from trimvla.policies.cogact.initialise import initialise
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.nn.vision import PatchEmbed
from trimvla.policies.sizes.config import PRESETS
from trimvla.sim.simpler.view import WORKSPACE

WHOLE = PRESETS["widowx"]
WINDOW = PRESETS["widowx-window"]


def test_stretched_filters_answer_alike_to_an_even_patch() -> None:
    torch.manual_seed(0)
    small = PatchEmbed(8, 5)
    large = PatchEmbed(14, 5)
    large.load_state_dict(
        {"proj.weight": stretch_filters(small.proj.weight, 14), "proj.bias": small.proj.bias}
    )
    colour = torch.rand(1, 3, 1, 1)
    even = small(colour.expand(1, 3, 16, 16))
    torch.testing.assert_close(large(colour.expand(1, 3, 28, 28)), even, atol=1e-5, rtol=1e-4)


def test_places_come_from_where_the_window_lies() -> None:
    side = 16
    x = (torch.arange(side) + 0.5) / side
    y = x[:, None].expand(side, side)
    place = torch.stack([x.expand(side, side), y], dim=-1).reshape(1, -1, 2)
    moved = move_places(place, (0.25, 0.125, 0.5, 0.75)).reshape(side, side, 2)
    expected = torch.stack([0.25 + 0.5 * x.expand(side, side), 0.125 + 0.75 * y], dim=-1)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(move_places(place, (0.0, 0.0, 1.0, 1.0)), place)


def test_training_starts_from_either_kind_of_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = initialise(CogAct(WHOLE))
    start = training_presets()["widowx-window"].method.start
    begun = start(WINDOW, checkpoint.save(whole, tmp_path / "whole.safetensors"))
    assert begun.cfg == WINDOW
    kept = [name for name in begun.state_dict() if name.startswith("language")]
    assert kept
    for name in kept:
        assert torch.equal(begun.state_dict()[name], whole.state_dict()[name])
    again = start(WINDOW, checkpoint.save(begun, tmp_path / "window.safetensors"))
    for name, value in begun.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_same_patches_and_the_whole_picture_change_nothing() -> None:
    whole = initialise(CogAct(WHOLE))
    assert start_in_window(whole, WHOLE, WORKSPACE.shares) is whole
    same = regrid(whole, WHOLE, (0.0, 0.0, 1.0, 1.0))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value)
