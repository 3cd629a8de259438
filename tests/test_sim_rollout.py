"""Rollouts and their statistics: counts, intervals, seeds, and what the policy is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimvla.sim import expert
from trimvla.sim.demonstrations import (
    AUX,
    CORRECTED_STEPS,
    FIRST_SEED,
    GOALS,
    Shard,
    corrected_episode,
    make_shard,
)
from trimvla.sim.rollout import evaluate, run_episode
from trimvla.sim.statistics import wilson
from trimvla.sim.tabletop import TabletopEnv


@dataclass(frozen=True)
class Actions:
    actions: np.ndarray


@dataclass
class ExpertActor:
    """Reads the state behind the picture's back and does what the sentence says."""

    env: TabletopEnv
    heard: list[str] = field(default_factory=list)

    def infer(self, image: np.ndarray, instruction: str, *, noise: np.ndarray) -> Actions:
        assert image.shape == (128, 128, 3)
        assert noise.shape == (16, 7)
        self.heard.append(instruction)
        scene = self.env.scene()
        goal = next(goal for goal in scene.goals() if scene.instruction(goal) == instruction)
        return Actions(expert.chunk(scene, self.env.state(), goal))


@pytest.mark.parametrize("execute", [1, 4])
def test_an_expert_actor_succeeds(execute: int) -> None:
    env = TabletopEnv(observe=False)
    outcomes = [run_episode(ExpertActor(env), env, seed, execute=execute) for seed in range(20)]
    assert sum(outcome.success for outcome in outcomes) >= 18, [(o.seed, o.verb, o.success) for o in outcomes]


def test_a_swapped_instruction_fails_the_original_goal() -> None:
    env = TabletopEnv(observe=False)
    actor = ExpertActor(env)
    outcomes = [run_episode(actor, env, seed, swap_instruction=True) for seed in range(6)]
    assert sum(outcome.success for outcome in outcomes) <= 1
    assert all(outcome.steps > 1 for outcome in outcomes)


class Idle:
    """Does nothing at all."""

    def infer(self, image: np.ndarray, instruction: str, *, noise: np.ndarray) -> Actions:
        chunk = np.zeros((16, 7))
        chunk[:, 6] = 1
        return Actions(chunk)


def test_doing_nothing_never_succeeds_and_the_summary_adds_up() -> None:
    result = evaluate(Idle(), episodes=4, seed=1000, execute=16)
    assert (result["successes"], result["episodes"], result["success_rate"]) == (0, 4, 0.0)
    assert sum(episodes for _, episodes in result["by_verb"].values()) == 4
    assert result["outcomes"] == [0, 0, 0, 0]
    assert result["mean_steps"] is None


def test_corrections_label_the_policys_states_with_the_experts_actions() -> None:
    env, shard = TabletopEnv(observe=False), Shard()
    assert not corrected_episode(env, FIRST_SEED, shard, Idle())
    assert len(shard.chunks) == CORRECTED_STEPS
    assert np.abs(shard.chunks[-1][0][0, :3]).max() > 0.005, "the expert would move where the policy idles"
    assert corrected_episode(env, FIRST_SEED, Shard(), ExpertActor(env))


def test_seeds_of_demonstrations_are_refused() -> None:
    with pytest.raises(ValueError, match="expected seeds below"):
        evaluate(Idle(), episodes=2, seed=FIRST_SEED - 1)


def test_wilson_matches_published_values() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-3)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-3)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_rate(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_a_shard_is_complete_deterministic_and_labelled(tmp_path) -> None:
    frames, _ = make_shard(tmp_path / "a.npz", FIRST_SEED, 2)
    make_shard(tmp_path / "b.npz", FIRST_SEED, 2)
    first, second = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert first["images"].shape == (frames, 128, 128, 3)
    assert first["chunks"].shape == (frames, GOALS, 16, 7)
    assert first["aux"].shape == (frames, GOALS, AUX)
    assert (first["points"] > 0).all()
    assert (first["points"] < 1).all()
    assert not list(tmp_path.glob("*.part"))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
