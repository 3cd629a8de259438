"""Episodes of one or several policies on a task: outcomes, success rates, intervals.

Every episode is fixed by its seed: the initial state, the policy's noise and, where its latency is
charged to the simulated clock, what is drawn of it. Several policies play each seed in turn, so
that their outcomes are pairs wherever a run is stopped. Knows tasks and anything that infers; knows
no environment, no backend and no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from trimvla.runtime.control.hold_reasons import hold_kind
from trimvla.runtime.control.motion_quality import MotionMeter
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy_like import Known, PolicyLike
from trimvla.sim.actor import EXPERT, KINDS, noise_shape, observe
from trimvla.sim.episodes import Episode, Task, make_task
from trimvla.sim.evaluation.latency import Latency
from trimvla.sim.evaluation.success import WAITS, Outcome, Success, success_of
from trimvla.sim.evaluation.virtual_time import LatencySimulator, Look, Pace, Robot
from trimvla.sim.evaluation.workers import spread
from trimvla.sim.own.options import EnvOptions
from trimvla.sim.seeds import FIRST_SEED

PolicyOrExpert = PolicyLike | str
"""Who drives an episode; `EXPERT` is the task's own scripted expert."""


PairedOutcomes = dict[str, Outcome]
"""One round: a seed, played by every actor, as name -> outcome."""
Load = Callable[[], AbstractContextManager[Mapping[str, PolicyOrExpert]]]
"""Opens the actors, by name and in the order in which they play, and closes them; in every process
that plays.
"""
WorkItem = tuple[str, int]
"""What is to be played: the condition and the seed."""


@dataclass(frozen=True)
class Setting:
    """What all episodes of an evaluation have in common.

    Example:
        >>> from trimvla.sim import Setting
        >>> Setting(task="tabletop:lighting").official  # seeds of one's own, no official grid
        False
    """

    task: str = "tabletop"
    """As `make_task` knows it."""
    official: bool = False
    """Whether seeds are places of the task's official grid."""
    pace: Pace = field(default_factory=Pace)
    latencies: Mapping[str, Mapping[str, Latency]] = field(default_factory=dict)
    """Condition -> the latency of each actor; of an actor that is not named, the simulator
    waits.
    """
    options: EnvOptions = field(default_factory=EnvOptions)
    """What the environment does not define itself."""

    def make_task(self) -> Task:
        """The task, made anew."""
        return make_task(self.task, self.options)


def run_episode(
    policy: PolicyOrExpert,
    task: Task,
    seed: int,
    setting: Setting,
    *,
    latency: Latency | None = None,
    watch: Callable[[Episode], None] = lambda episode: None,
) -> Outcome:
    """Play one episode to its end; `watch` sees it before every step and after the last."""
    episode = task.episode(seed, official=setting.official)
    try:
        instruction = episode.instruction
        verb = kind_of(episode)
        look = look_of(policy, episode, seed, task.dim)
        robot = robot_of(policy, task)
        simulator = LatencySimulator(
            look, task.control_hz, setting.pace, latency, seed, robot=robot
        )
        meter = meter_of(policy, robot, task.control_hz)
        step = 0
        done = False
        while not done and step < task.limit:
            watch(episode)
            action = simulator.act(step, episode.instruction)
            because = simulator.held_because
            meter.add(action, hold_kind(because) if because else None)
            done = episode.step(action)
            step += 1
        watch(episode)
        return Outcome(
            seed,
            verb,
            instruction,
            episode.success,
            step,
            latency=latency.name if latency else WAITS,
            latency_ms=0.0
            if latency is None or latency.kind == "wall"
            else mean(simulator.latencies_ms),
            held=simulator.held,
            motion=meter.counts(),
            inference_ms=round(float(np.median(simulator.wall_ms)), 3),
        )
    finally:
        episode.close()


def robot_of(policy: PolicyOrExpert, task: Task) -> Robot:
    """What an action means: by the task, else by the bundle that plays."""
    manifest = getattr(policy, "manifest", None)
    kinds = task.kinds or (manifest.action.kinds if manifest is not None else ("delta",) * task.dim)
    start = getattr(task, "start", None)
    return Robot(kinds, None if start is None else tuple(map(float, start)))


def meter_of(policy: PolicyOrExpert, robot: Robot, hz: float) -> MotionMeter:
    """Counts an episode's motion; its distance to limits is that to the range of the actions that
    the policy learned from, where it has one.
    """
    low, high = getattr(policy, "action_range", (None, None))
    return MotionMeter(robot.kinds, hz, low, high)


def look_of(policy: PolicyOrExpert, episode: Episode, seed: int, dim: int = len(KINDS)) -> Look:
    """The chunk that a policy makes of the image that is there now; its noise is fixed by seed and
    tick.
    """
    if isinstance(policy, str):
        return lambda tick, known: episode.expert()[None]

    shape = noise_shape(policy, dim)

    def look(tick: int, known: Known | None) -> np.ndarray:
        noise = np.random.default_rng((seed, tick)).standard_normal(shape, dtype=np.float32)
        return policy.infer(observe(episode, policy), noise=noise, known=known).actions

    return look


def kind_of(episode: Episode) -> str:
    """By what outcomes are grouped: what the environment calls it, or the first word of the
    instruction.
    """
    return getattr(episode, "kind", None) or episode.instruction.split()[0]


def mean(values: Sequence[float]) -> float:
    """0 where there are none."""
    return sum(values) / len(values) if values else 0.0


def choose_seeds(
    grid: int, episodes: int | None, seed: int | None, *, usual: int
) -> tuple[bool, range]:
    """Whether the official episodes are played, and the seeds.

    Args:
        grid: episodes of the task's official grid; 0 where there is none.
        episodes: how many; None: all official ones, or `usual` where there are none or a seed asks
            for others.
        seed: the first; None: the official episodes or, where there are none, 1000.
        usual: see `episodes`.

    Raises:
        ConfigError: there are not so many official episodes.
    """
    official = grid > 0 and seed is None
    count = episodes or (grid if official else usual)
    if official and count > grid:
        raise ConfigError(
            f"expected at most {grid} official episodes, got --episodes {count}; --seed for more"
        )
    first = 0 if official else 1000 if seed is None else seed
    return official, range(first, first + count)


def play(
    load: Load, setting: Setting, items: Sequence[WorkItem | int]
) -> Generator[PairedOutcomes, None, None]:
    """Play the items in turn, each with every actor before the next; a seed alone is the condition
    `WAITS`.
    """
    with closing(setting.make_task()) as task:
        check_episodes(
            task,
            [item if isinstance(item, int) else item[1] for item in items],
            official=setting.official,
        )
        yield from _play(load, setting, items, task)


def _play(
    load: Load, setting: Setting, items: Sequence[WorkItem | int], task: Task
) -> Generator[PairedOutcomes, None, None]:
    with load() as actors:
        for item in items:
            condition, seed = (WAITS, item) if isinstance(item, int) else item
            late = setting.latencies.get(condition, {})
            yield {
                name: run_episode(actor, task, seed, setting, latency=late.get(name))
                for name, actor in actors.items()
            }


Spread = Callable[
    [Callable[..., Iterable[PairedOutcomes]], Sequence[WorkItem], int],
    Generator[PairedOutcomes, None, None],
]
"""Work, items and a number of processes -> rounds as they come; `workers.spread` or one over
machines.
"""


def play_all(
    load: Load, setting: Setting, items: Sequence[WorkItem], workers: int = 1, over: Spread = spread
) -> Generator[PairedOutcomes, None, None]:
    """Play the items in so many processes; rounds come as they are ready.

    With one worker and no other `over` it happens in this process.
    """
    check_seeds(setting, [seed for _, seed in items])
    work = partial(play, load, setting)
    if over is spread and min(workers, len(items)) == 1:
        return work(items)
    return over(work, items, workers)


def check_seeds(setting: Setting, seeds: Sequence[int]) -> None:
    """Demonstrations have seeds of their own. Raises ValueError."""
    if not setting.official and seeds and max(seeds) >= FIRST_SEED:
        raise ValueError(
            f"expected seeds below {FIRST_SEED} (demonstrations use the rest), got {max(seeds)}"
        )


def check_episodes(task: Task, seeds: Sequence[int], *, official: bool) -> None:
    """Let a task that loads files look for those of these episodes.

    Raises ConfigError before one is played.
    """
    check = getattr(task, "check", None)
    if check is not None:
        check(seeds, official=official)


def check_expert(policies: Iterable[str], setting: Setting) -> None:
    """The expert gives one action at a time, and what to do now: it must look at every step and
    cannot be late.
    """
    if EXPERT in policies and (setting.pace.execute != 1 or any(setting.latencies.values())):
        raise ConfigError(
            "expected --execute 1 and no --latency with the scripted expert: it gives one action a"
            " look"
        )


def evaluate_all(
    load: Load,
    setting: Setting,
    *,
    episodes: int,
    seed: int,
    workers: int = 1,
    progress: Callable[[PairedOutcomes], None] = lambda played: None,
) -> dict[str, Success]:
    """Every actor's success over the same seeds, `seed` ... `seed + episodes - 1`; the simulator
    waits.

    Args:
        load: opens the actors; with several workers it must be picklable, as each process calls it.
        setting: of all episodes.
        episodes: of each actor.
        seed: of the first episode.
        workers: processes; the outcomes are the same however many there are.
        progress: is given each seed's outcomes, as they come.
    """
    items = [(WAITS, number) for number in range(seed, seed + episodes)]
    by_actor: dict[str, list[Outcome]] = {}
    with closing(play_all(load, setting, items, workers)) as rounds:
        for played in rounds:
            progress(played)
            for name, outcome in played.items():
                by_actor.setdefault(name, []).append(outcome)
    return {name: success_of(results) for name, results in by_actor.items()}


def evaluate(policy: PolicyOrExpert, setting: Setting, *, episodes: int, seed: int) -> Success:
    """One actor's success, in this process; see `evaluate_all`.

    Example:
        >>> from trimvla.runtime import Policy
        >>> from trimvla.sim import Setting, evaluate
        >>> policy = Policy.load("tabletop-trimmed", threads=1)
        >>> result = evaluate(policy, Setting(task="tabletop"), episodes=1, seed=1000)
        >>> result.episodes, len(result.outcomes)
        (1, 1)
    """
    found = evaluate_all(
        lambda: nullcontext({"actor": policy}), setting, episodes=episodes, seed=seed
    )
    return found["actor"]
