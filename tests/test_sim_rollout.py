"""Rollouts: counts, seeds, pairs, and what the policy is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Known
from trimvla.runtime.preprocess.observation import Observation
from trimvla.sim.actor import EXPERT
from trimvla.sim.episodes import make_task
from trimvla.sim.evaluation.latency import constant
from trimvla.sim.evaluation.rollout import (
    Setting,
    check_expert,
    evaluate,
    evaluate_all,
    play,
    run_episode,
)
from trimvla.sim.evaluation.statistics import compare
from trimvla.sim.evaluation.virtual_time import Pace
from trimvla.sim.tabletop import expert
from trimvla.sim.tabletop.demonstrations import (
    AUX,
    CORRECTED_STEPS,
    FIRST_SEED,
    GOALS,
    Shard,
    corrected_episode,
    make_shard,
)
from trimvla.sim.tabletop.env import TabletopEnv
from trimvla.sim.tabletop.task import TabletopTask


@dataclass(frozen=True)
class Actions:
    actions: np.ndarray
    milliseconds: dict[str, float] = field(default_factory=dict)


@dataclass
class ExpertActor:
    """Reads the state behind the image's back and does what the instruction says."""

    env: TabletopEnv
    heard: list[str] = field(default_factory=list)

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Actions:
        instruction = observation.instruction
        assert observation.images[""].shape == (128, 128, 3)
        assert noise is not None
        assert noise.shape == (16, 7)
        self.heard.append(instruction)
        scene = self.env.scene()
        goal = next(goal for goal in scene.goals() if scene.instruction(goal) == instruction)
        return Actions(expert.chunk(scene, self.env.state(), goal))


def blind(swapped: bool = False) -> TabletopTask:
    """A task that costs no rendering."""
    return TabletopTask(swapped=swapped, observe=False)


@pytest.mark.parametrize("execute", [1, 4])
def test_an_expert_actor_succeeds(execute: int) -> None:
    task = blind()
    setting = Setting(pace=Pace(execute=execute))
    outcomes = [run_episode(ExpertActor(task._env), task, seed, setting) for seed in range(20)]
    assert sum(outcome.success for outcome in outcomes) >= 18, [
        (o.seed, o.verb, o.success) for o in outcomes
    ]


def test_the_tasks_own_expert_plays_in_an_actors_place() -> None:
    task = blind()
    outcomes = [run_episode(EXPERT, task, seed, Setting()) for seed in range(10)]
    assert sum(outcome.success for outcome in outcomes) >= 9
    assert outcomes == [run_episode(EXPERT, blind(), seed, Setting()) for seed in range(10)]
    check_expert([EXPERT], Setting())
    with pytest.raises(ConfigError, match="expected --execute 1"):
        check_expert([EXPERT], Setting(pace=Pace(execute=2)))


def test_a_swapped_instruction_fails_the_original_goal() -> None:
    task = blind(swapped=True)
    actor = ExpertActor(task._env)
    outcomes = [run_episode(actor, task, seed, Setting()) for seed in range(6)]
    assert sum(outcome.success for outcome in outcomes) <= 1
    assert all(outcome.steps > 1 for outcome in outcomes)
    assert make_task("tabletop:lighting+swapped").name == "tabletop:lighting+swapped"
    with pytest.raises(ConfigError, match="expected a variant"):
        make_task("tabletop:dusk")


def test_latency_costs_success_and_is_the_same_every_time() -> None:
    """At 5 Hz, 57 ms and 200 ms both cost one step."""
    task = blind()
    setting = Setting(pace=Pace(execute=1, votes=1))
    late = {
        ms: [
            run_episode(ExpertActor(task._env), task, s, setting, latency=constant("late", ms))
            for s in range(4)
        ]
        for ms in (0.0, 57.0, 200.0, 1500.0)
    }
    steps = {ms: sum(outcome.steps for outcome in outcomes) for ms, outcomes in late.items()}
    waiting = [run_episode(ExpertActor(task._env), task, seed, setting) for seed in range(4)]
    assert steps[0.0] == sum(outcome.steps for outcome in waiting)
    assert [(o.success, o.steps, o.held) for o in late[57.0]] == [
        (o.success, o.steps, o.held) for o in late[200.0]
    ]
    assert steps[0.0] < steps[200.0] < steps[1500.0]
    assert sum(outcome.held for outcome in late[1500.0]) > steps[1500.0] / 4
    assert late[200.0] == [
        run_episode(ExpertActor(task._env), task, s, setting, latency=constant("late", 200.0))
        for s in range(4)
    ]


class Idle:
    """Does nothing at all."""

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Actions:
        chunk = np.zeros((16, 7))
        chunk[:, 6] = 1
        return Actions(chunk)


def test_doing_nothing_never_succeeds_and_the_summary_adds_up() -> None:
    result = evaluate(Idle(), Setting(pace=Pace(execute=16)), episodes=4, seed=1000)
    assert (result.successes, result.episodes, result.success_rate) == (0, 4, 0.0)
    assert sum(episodes for _, episodes in result.by_verb.values()) == 4
    assert result.outcomes == [0, 0, 0, 0]
    assert result.mean_steps is None


EXECUTE = 8
EPISODES = 4
FIRST = 1000
SETTING = Setting(pace=Pace(execute=EXECUTE))
CANDIDATE_WINS = frozenset({1000, 1001})
REFERENCE_WINS = frozenset({1001, 1003})


@dataclass
class Twin:
    """Succeeds on the seeds in `wins` alone: plays the expert on a table of its own, which moves
    like the real one.
    """

    wins: frozenset[int]
    log: list[int] = field(default_factory=list)
    env: TabletopEnv = field(default_factory=lambda: TabletopEnv(observe=False))
    last: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))

    def infer(
        self,
        observation: Observation,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> Actions:
        assert noise is not None
        starts = [
            s for s in range(FIRST, FIRST + EPISODES) if np.array_equal(noise, first_noise(s))
        ]
        if starts:
            self.seed = starts[0]
            self.log.append(self.seed)
            self.env.reset(seed=self.seed)
            assert self.env.instruction == observation.instruction
        else:
            for action in self.last[:EXECUTE]:
                self.env.step(action)
        scene = self.env.scene()
        hold = np.tile([0.0] * 6 + [1.0], (16, 1))
        self.last = (
            expert.chunk(scene, self.env.state(), scene.goal) if self.seed in self.wins else hold
        )
        return Actions(self.last)


def first_noise(seed: int) -> np.ndarray:
    """What a policy is given at an episode's first step: it depends on the seed alone."""
    return np.random.default_rng((seed, 0)).standard_normal((16, 7), dtype=np.float32)


def twins() -> AbstractContextManager[Mapping[str, Twin]]:
    return nullcontext({"reference": Twin(REFERENCE_WINS), "candidate": Twin(CANDIDATE_WINS)})


def test_two_actors_play_each_seed_in_turn_and_their_outcomes_are_pairs() -> None:
    log: list[int] = []
    actors = {"reference": Twin(REFERENCE_WINS, log), "candidate": Twin(CANDIDATE_WINS, log)}
    told = []
    results = evaluate_all(
        lambda: nullcontext(actors), SETTING, episodes=EPISODES, seed=FIRST, progress=told.append
    )
    assert log == [1000, 1000, 1001, 1001, 1002, 1002, 1003, 1003]
    assert results["candidate"].outcomes == [1, 1, 0, 0]
    assert results["reference"].outcomes == [0, 1, 0, 1]
    assert [{o.seed for o in played.values()} for played in told] == [
        {1000},
        {1001},
        {1002},
        {1003},
    ]
    it = compare(results["candidate"].outcomes, results["reference"].outcomes, margin=0.05)
    assert (it.both, it.candidate_only, it.reference_only, it.neither) == (1, 1, 1, 1)
    assert (it.difference, it.p_value, it.non_inferior) == (0.0, 1.0, False)


def test_a_run_that_is_stopped_early_is_still_paired() -> None:
    rounds = play(twins, SETTING, range(FIRST, FIRST + EPISODES))
    played = next(rounds)
    rounds.close()
    assert {name: outcome.seed for name, outcome in played.items()} == {
        "reference": 1000,
        "candidate": 1000,
    }


def test_two_actors_get_what_each_gets_alone() -> None:
    both = evaluate_all(twins, SETTING, episodes=2, seed=FIRST)
    alone = evaluate(Twin(CANDIDATE_WINS), SETTING, episodes=2, seed=FIRST)
    assert both["candidate"] == alone


def test_workers_give_the_same_as_one_process() -> None:
    run = partial(evaluate_all, twins, SETTING, episodes=2, seed=FIRST)
    told = []
    assert run(workers=2, progress=told.append) == run()
    assert sorted(played["candidate"].seed for played in told) == [1000, 1001]


def test_corrections_label_the_policys_states_with_the_experts_actions() -> None:
    env = TabletopEnv(observe=False)
    shard = Shard()
    assert not corrected_episode(env, FIRST_SEED, shard, Idle())
    assert len(shard.chunks) == CORRECTED_STEPS
    assert np.abs(shard.chunks[-1][0][0, :3]).max() > 0.005, (
        "the expert would move where the policy idles"
    )
    assert corrected_episode(env, FIRST_SEED, Shard(), ExpertActor(env))


def test_seeds_of_demonstrations_are_refused() -> None:
    with pytest.raises(ValueError, match="expected seeds below"):
        evaluate(Idle(), Setting(), episodes=2, seed=FIRST_SEED - 1)


def test_a_shard_is_complete_deterministic_and_labelled(tmp_path) -> None:
    frames, _ = make_shard(tmp_path / "a.npz", FIRST_SEED, 2)
    make_shard(tmp_path / "b.npz", FIRST_SEED, 2)
    first = np.load(tmp_path / "a.npz")
    second = np.load(tmp_path / "b.npz")
    assert first["images"].shape == (frames, 128, 128, 3)
    assert first["chunks"].shape == (frames, GOALS, 16, 7)
    assert first["aux"].shape == (frames, GOALS, AUX)
    assert (first["points"] > 0).all()
    assert (first["points"] < 1).all()
    assert not list(tmp_path.glob("*.part"))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
