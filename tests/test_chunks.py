"""From chunk to chunk without a jump: every mode on chunks that the shipped policy gave, and each
part by hand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import chunk_modes
import numpy as np
import pytest
import torch
from chunk_modes import MODES, SEEDS, fly, jumps
from tiny_bundle import DIM, HORIZON, KINDS, write_bundle
from tiny_policy import random_policy

from trimvla.policies.nn.diffusion import Known as KnownRows
from trimvla.policies.nn.diffusion import ddim_steps
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.scale import Scale, normalise, unnormalise
from trimvla.runtime.bus.messages import ActionChunk
from trimvla.runtime.chunks.chunk_queue import ChunkQueue, Due, QueueConfig, fade
from trimvla.runtime.chunks.rtc import RtcConfig, guide, known_rows, weights
from trimvla.runtime.chunks.transition import TransitionLimiter
from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.control.controller import ControlConfig
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import BackendError, BundleError, ConfigError
from trimvla.runtime.inference.policy import Known, Policy
from trimvla.sim.evaluation.virtual_time import Pace
from trimvla.sim.tabletop.task import TabletopTask

PERIOD = NS_PER_S // 5
BOUND = np.array([0.02, 0.02, 0.02, 0.1, 0.1, 0.1, np.inf])


def switched(pace: Pace) -> np.ndarray:
    """float64[n, 7]: the jumps at all switches of the recorded episodes."""
    return np.concatenate([jumps(chunk_modes.replayed(seed, pace)) for seed in SEEDS])


@pytest.mark.parametrize("name", MODES)
def test_no_jump_beyond_the_bound_in_any_mode(name):
    bounded = replace(MODES[name], max_jump=tuple(BOUND))
    free = switched(MODES[name])
    held = switched(bounded)
    assert len(held) == len(free) > 30
    assert (held <= BOUND + 1e-12).all(), held.max(axis=0)
    assert (free > BOUND).any(axis=1).sum() > 3, "the bound had nothing to do"
    print(
        f"{name}: mean {free[:, :3].mean() * 1e3:.1f} mm, largest {free[:, :3].max() * 1e3:.1f} mm"
        " without a bound"
    )


def test_every_mode_jumps_less_than_plain_chunks():
    sizes = {name: switched(pace)[:, :3].mean() for name, pace in MODES.items()}
    plain = sizes.pop("plain")
    assert all(size < 0.9 * plain for size in sizes.values()), (plain, sizes)


def test_the_recorded_chunks_are_those_of_the_shipped_policy():
    calls = chunk_modes.recorded()
    for index in range(0, len(calls.step), 10):
        again = chunk_modes.sample(
            int(calls.seed[index]), int(calls.step[index]), calls.cognition[index], None
        )
        np.testing.assert_allclose(again, calls.actions[index], atol=1e-3)


@pytest.mark.parametrize("name", ["tabletop", "tabletop-trimmed"])
def test_the_guided_stage_without_weight_is_the_plain_one_and_with_it_keeps_rows(name):
    directory = bundles.resolve(name)
    stages = bundles.load(directory, verify_hashes=False).stages
    plain, guided = (chunk_modes.runner(stage, name) for stage in ("action", "action_guided"))
    assert (directory / stages["action_guided"].file).stat().st_size < 300_000, (
        "the weights are the plain stage's"
    )
    rng = np.random.default_rng(1)
    cognition, noise, known = (
        rng.standard_normal(shape, np.float32) for shape in ((1, 192), (1, 16, 7), (1, 16, 7))
    )
    start = {"cognition": cognition, "noise": noise}
    weight = np.zeros((1, 16, 1), np.float32)
    got = guided.run({**start, "known": known, "weight": weight})["guided_actions"]
    np.testing.assert_array_equal(got, plain.run(start)["actions"])
    weight[:, :4] = 1.0
    got = guided.run({**start, "known": known, "weight": weight})["guided_actions"]
    np.testing.assert_allclose(got[:, :4], known[:, :4], atol=1e-5)


def test_a_pulled_step_explains_what_it_began_with():
    """The oracle: change the clean actions, work out the noise anew, and step with both."""
    x, noise, change = (torch.randn(1, 16, 7, dtype=torch.float64) for _ in range(3))
    for step in ddim_steps(100, 10):
        after, x0 = step.apply(x, noise)
        changed = x0 + change
        explained = (x - step.kept**0.5 * changed) / (1.0 - step.kept) ** 0.5
        expected = step.kept_next**0.5 * changed + (1.0 - step.kept_next) ** 0.5 * explained
        torch.testing.assert_close(after + step.pull * change, expected)


@pytest.mark.parametrize("plan", [Plan(), Plan(recompute=(0,))])
def test_guidance_in_torch_leads_from_free_to_known(plan):
    policy = trim(random_policy(), plan)
    z = torch.randn(1, policy.cfg.language.width)
    noise = torch.randn(1, 16, 7)
    known = torch.randn(1, 16, 7)
    with torch.no_grad():
        told = [
            policy.act(z, noise, KnownRows(known, torch.full((1, 16, 1), w)))
            for w in (0.0, 0.5, 1.0)
        ]
        assert torch.equal(told[0], policy.act(z, noise))
    far, nearer, there = ((actions - known).abs().mean() for actions in told)
    assert far > nearer > there and there < 1e-5


def chunk(step: float, actions: np.ndarray, **fields: Any) -> ActionChunk:
    defaults: dict[str, Any] = {
        "time_ns": round(step * PERIOD),
        "sequence": round(step),
        "episode": 1,
        "actions": tuple(map(tuple, np.asarray(actions, float).tolist())),
        "control_hz": 5.0,
        "valid_rows": len(actions),
        "produced_ns": round(step * PERIOD),
        "frame_sequence": 0,
        "seed": (0,),
    }
    return ActionChunk(**{**defaults, **fields})


def rows(x: float, gripper: float = 1.0, count: int = 8) -> np.ndarray:
    return np.tile([x, gripper], (count, 1))


def test_a_blend_goes_over_in_equal_steps_and_the_gripper_at_once():
    queue = ChunkQueue(QueueConfig(mode="blend", blend_s=0.6), ("delta", "gripper"))
    queue.push(chunk(0, rows(0.0)), 0)
    queue.push(chunk(1, rows(4.0, gripper=0.0)), 2 * PERIOD)
    told = [queue.due(step * PERIOD) for step in range(2, 7)]
    assert [due.action.tolist() for due in told if isinstance(due, Due)] == [
        [1, 0],
        [2, 0],
        [3, 0],
        [4, 0],
        [4, 0],
    ]


def test_a_blend_of_three_goes_on_from_where_it_was():
    action = fade(np.array([[0.0], [4.0], [8.0]]), [1.0, 0.5, 0.25], ())
    assert action.tolist() == [0.75 * 2.0 + 0.25 * 8.0]


def test_a_seam_bounds_the_first_step_and_the_rest_of_the_way():
    transition = TransitionLimiter((1.0, np.inf))
    before = np.array([0.0, 0.0])
    told = []
    for number, wanted in [(1, 5.0), (1, 9.0), (2, 6.5), (3, 4.0), (3, 4.0), (3, 4.0), (3, 9.0)]:
        before = transition.limit(np.array([wanted, wanted]), number, before)
        told.append(before.tolist())
    assert told == [[5, 5], [9, 9], [8, 6.5], [7, 4], [6, 4], [5, 4], [6, 9]]


@pytest.mark.parametrize("lie", [np.nan, np.inf, -np.inf])
def test_a_seam_leaves_what_is_no_number_to_the_gate(lie):
    transition = TransitionLimiter((1.0,))
    transition.limit(np.array([0.0]), 1, np.array([0.0]))
    for chunk in (2, 2, 3):  # also after the first time
        assert not np.isfinite(transition.limit(np.array([lie]), chunk, np.array([0.0]))).any()
    assert transition.limit(np.array([9.0]), 4, np.array([0.0])) == 1.0  # and is careful afterwards


def test_weights_by_hand():
    assert weights(6, 2, 5, "linear").tolist() == [1, 1, 0.75, 0.5, 0.25, 0]
    falling = weights(6, 2, 5, strength=0.5)
    share = 0.75 * np.expm1(0.75) / np.expm1(1.0)
    assert (
        falling[2] == pytest.approx(0.5 * share)
        and falling[:2].tolist() == [1, 1]
        and falling[5] == 0
    )


def test_what_is_frozen_is_what_runs_while_the_policy_thinks():
    config = RtcConfig(enabled=True, margin_s=0.05)
    old = chunk(0, np.arange(32.0).reshape(16, 2), valid_rows=8)
    # 2.5 periods, and a quarter of one as margin
    told = guide(config, old, 1, 3 * PERIOD, round(5.5 * PERIOD))
    assert told is not None and (told.chunk, told.shift, told.frozen) == (0, 3, 3)
    known, weight = known_rows(old, told)
    assert known[:4].tolist() == [list(row) for row in old.actions[3:7]] and weight.shape == (16,)
    assert (
        weight[:3].tolist() == [1, 1, 1]
        and 0 < weight[3] <= config.strength
        and (weight[13:] == 0).all()
    )
    nearly_over = guide(config, old, 1, 6 * PERIOD, 9 * PERIOD)
    assert nearly_over is not None and nearly_over.frozen == 2  # only valid rows will be executed
    assert guide(config, old, 1, 8 * PERIOD, 9 * PERIOD) is None  # it has run out
    assert guide(config, old, 2, 3 * PERIOD, 5 * PERIOD) is None  # another episode
    assert guide(RtcConfig(), old, 1, 3 * PERIOD, 5 * PERIOD) is None
    assert guide(config, None, 1, 3 * PERIOD, 5 * PERIOD) is None


def test_normalise_undoes_unnormalise_and_leaves_what_does_not_move():
    statistics = Scale((-0.1, 0.0, 0.0), (0.3, 0.0, 1.0), (True, True, False))
    normalized = np.array([[-1.0, 0.0, 1.0], [0.25, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(
        normalise(unnormalise(normalized, statistics), statistics), normalized, atol=1e-7
    )


def test_a_policy_keeps_known_rows_and_needs_the_stage_for_it(tmp_path: Path):
    directory = write_bundle(tmp_path / "bundle", guided=True)
    picture = np.zeros((8, 8, 3), np.uint8)
    known = np.zeros((HORIZON, DIM))
    known[:, 0] = 0.01
    known[:, 6] = 1.0
    guided = Policy.load(directory, guided=True)
    free = guided.infer(picture, "pick up", seed=1).actions
    kept = guided.infer(
        picture, "pick up", seed=1, known=Known(known, weights(HORIZON, 4, 4))
    ).actions
    np.testing.assert_allclose(kept[:4], known[:4], atol=1e-8)
    np.testing.assert_array_equal(kept[4:], free[4:])
    plain = Policy.load(directory)
    assert "action_guided" not in plain.runners
    with pytest.raises(BackendError, match="loaded 'guided'"):
        plain.infer(picture, "pick up", known=Known(known, weights(HORIZON, 4, 4)))
    with pytest.raises(BundleError, match="expected the mode 'guided': export it with --guided"):
        Policy.load(write_bundle(tmp_path / "plain"), guided=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: QueueConfig(blend_s=0),
        lambda: QueueConfig(max_jump=(0.0,)),
        lambda: RtcConfig(strength=2),
        lambda: RtcConfig(overlap=-1),
        lambda: RtcConfig(schedule=cast("Any", "steep")),
        lambda: ControlConfig(
            Limits((-1.0,) * 7, (1.0,) * 7), KINDS, queue=QueueConfig(max_jump=(1.0,))
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_an_episode_goes_on_while_the_policy_thinks():
    """Row r of the chunk for tick t says t + r, and a little more, by which it is known."""
    known_by_look: dict[int, np.ndarray | None] = {}

    def look(tick: int, known: Known | None) -> np.ndarray:
        known_by_look[tick] = None if known is None else known.actions[:3, 0]
        actions = np.zeros((16, 7))
        actions[:, 0] = (tick + np.arange(16)) * 1e-4 + tick * 1e-7
        return actions

    episode = TabletopTask(observe=False).episode(7, official=False)
    ticks = fly(look, MODES["real-time"], episode.instruction, episode.step, ticks=100)
    assert len(ticks) == 60 and not episode.success
    # nothing is known yet
    assert all(tick.chunk is None and not tick.action[:6].any() for tick in ticks[:3])
    made = [step - step % 3 - 3 for step in range(3, 60)]  # of the image of three ticks before
    expected = [step * 1e-4 + chunk * 1e-7 for step, chunk in zip(range(3, 60), made, strict=True)]
    np.testing.assert_allclose([tick.action[0] for tick in ticks[3:]], expected, atol=1e-12)
    np.testing.assert_allclose(jumps(ticks)[:, 0], 1e-4 + 3e-7, atol=1e-12)
    assert list(known_by_look) == list(range(0, 60, 3)) and known_by_look[0] is None
    np.testing.assert_allclose(
        np.array(known_by_look[3], float), [(3 + row) * 1e-4 for row in range(3)], atol=1e-12
    )
