"""The search of `trimvla tune`, part by part: orders, prices, distances, choice, exports, times,
episodes.

What a part finds is kept below `OUT/state`, under a name of everything that it depends on, so that
a killed run goes on and another question begins anew. Knows CogACT's planner.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trimvla.export.bundle import BundleRequest, described_by, export_policy
from trimvla.launch.ablation.bundles import same, weights_digest
from trimvla.launch.ablation.play import play
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.subjects import BenchInput, open_bench_bundle
from trimvla.launch.bench.turns import Samples, Subject
from trimvla.launch.console import Progress
from trimvla.launch.tuning.kept import Kept
from trimvla.launch.tuning.options import TuneArgs
from trimvla.launch.tuning.plans import NestedPlans, measured
from trimvla.launch.tuning.points import Point, dense_point, grid, spread_out
from trimvla.launch.tuning.prices import Measured, Prices
from trimvla.launch.tuning.search import Candidate, chosen
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.families import family_of
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.importance import greedy_chunk
from trimvla.policies.trimming.planner import time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_statistics import read_table
from trimvla.runtime.bundle.plan import Plan, Provenance, save_plan
from trimvla.sim.evaluation.rollout import Setting
from trimvla.sim.evaluation.success import Outcome

CRITERION = "greedy-chunk"
INSTRUCTION = "pick up the red cube"
CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it
DENSE = "dense"


@dataclass
class Clock:
    """Minutes by part."""

    minutes: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = time.monotonic()
        yield
        self.minutes[name] = round((time.monotonic() - start) / 60.0, 2)


@dataclass(frozen=True)
class Job:
    """One search."""

    args: TuneArgs
    dense: Path
    """The dense bundle."""
    policy: CogAct
    data: Calibration
    progress: Progress
    clock: Clock

    @property
    def state(self) -> Path:
        """Where what was found is kept: of these weights, frames and seed."""
        args = self.args
        what = (weights_digest(self.dense), self.data.digest(), args.draw, args.cache_interval)
        place = self.args.out / "state" / hashlib.sha256(repr(what).encode()).hexdigest()[:12]
        place.mkdir(parents=True, exist_ok=True)
        return place


def plans_of(job: Job) -> NestedPlans:
    """Nested orders of the policy: minutes at first, then read back."""
    statistics, outputs = measured(job.policy, job.data, job.args.draw)
    kept: Kept[list[float]] = Kept(job.state / "orders.jsonl", list[float])
    with job.clock.part("order of the layers"):
        task = job.progress.add_task("order of the layers", total=None)
        if CRITERION not in kept:
            scores = greedy_chunk(replace(statistics, outputs=outputs), job.args.draw)
            kept.add(CRITERION, scores)
        job.progress.update(task, total=1, completed=1)
    provenance = Provenance(
        criterion=CRITERION,
        scores=tuple(kept[CRITERION]),
        calibration=job.data.digest(),
        frames=statistics.samples,
        seed=job.args.draw,
        created_utc=time_stamp(),
    )
    return NestedPlans(job.policy, statistics, outputs, kept[CRITERION], provenance)


def export_point(job: Job, plan: Plan, directory: Path) -> Path:
    """The bundle of a plan, made if it is not there."""
    if directory.exists() and same(plan, bundles.load(directory).plan):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    dense = bundles.load(job.dense)
    export_policy(
        BundleRequest(
            policy=job.policy,
            described=described_by(dense),
            plan=plan,
            statistics=read_table(job.dense / bundles.STATISTICS),
            tokenizer=job.dense / bundles.TOKENIZER,
            out=directory,
            overwrite=True,
        )
    )
    return directory


def take_times(job: Job, made: dict[str, Path], title: str) -> tuple[Samples, list[Subject]]:
    """All bundles in turns at the clock."""
    args = job.args
    image = np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8)
    given = BenchInput(image, args.instruction or INSTRUCTION)
    task = job.progress.add_task(title, total=args.warmup + args.rounds)
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for name, path in made.items():
            entry = open_bench_bundle(str(path), args.backend, args.threads, stack)
            calls = benchmark.policy_calls(entry.policy, given.of(entry.policy))
            subjects.append(Subject(name, name, args.backend, name == DENSE, calls))
        samples = benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: job.progress.update(task, completed=turn),
        )
    return samples, subjects


def language_flops(job: Job, plan: Plan) -> float:
    """Operations of the language stage under a plan."""
    cfg = job.policy.cfg
    return float(family_of(cfg).cost(cfg, plan).stages["language"].flops)


def measure_device(job: Job, plans: NestedPlans) -> list[Measured]:
    """Times of a few points that lie far from each other; kept for this backend and threads."""
    args = job.args
    points = spread_out(grid(plans.there, args.cache_interval), args.priced)
    path = job.state / f"prices-{args.backend.replace(':', '-')}-{args.threads}.jsonl"
    kept: Kept[dict[str, float]] = Kept(path, dict[str, float])
    with job.clock.part("prices"):
        task = job.progress.add_task("exports for prices", total=len(points))
        made: dict[str, Path] = {}
        for point in points:
            place = job.dense
            if point != points[0]:
                place = export_point(job, plans.plan(point), job.state / "priced" / point.name)
            made[point.name] = place
            job.progress.advance(task)
        if not all(name in kept for name in made):
            samples, _ = take_times(job, made, "prices of this device")
            for name, cells in samples.items():
                stages = {
                    stage: float(np.median(times))
                    for (layer, stage), times in cells.items()
                    if layer == "L0" and stage != benchmark.TOTAL
                }
                kept.add(name, stages)
    return [
        Measured(point, kept[point.name], language_flops(job, plans.plan(point)))
        for point in points
    ]


def candidates_of(job: Job, plans: NestedPlans, prices: Prices) -> list[Candidate]:
    """Every point of the grid with its price and its distance."""
    points = grid(plans.there, job.args.cache_interval)
    kept: Kept[float] = Kept(job.state / "distances.jsonl", float)
    found: list[Candidate] = []
    with job.clock.part("distances"):
        task = job.progress.add_task("points on frames", total=len(points))
        for point in points:
            if point.name not in kept:
                kept.add(point.name, plans.distance(point))
            price = prices.of(point, language_flops(job, plans.plan(point)))
            found.append(Candidate(point, price, kept[point.name]))
            job.progress.advance(task)
    return found


@dataclass(frozen=True)
class Choice:
    """What is exported: candidates from the slowest to the fastest, and which budgets they meet."""

    candidates: list[Candidate]
    dense: Candidate
    meets: dict[Point, tuple[str, ...]]


def choose(job: Job, found: Sequence[Candidate], plans: NestedPlans) -> Choice:
    """Points of the front. ConfigError where a budget cannot be met."""
    args = job.args
    dense = next(one for one in found if one.point == dense_point(plans.there))
    asked = {f"{value:g} ms": value for value in args.budget_ms}
    asked |= {f"{value:g} times": dense.price_ms / value for value in args.speedup}
    points = chosen(found, dense.price_ms, list(asked.values()), args.points)
    meets: dict[Point, tuple[str, ...]] = {}
    for words, budget in asked.items():
        slowest = next(one for one in points if one.price_ms <= budget)
        meets[slowest.point] = (*meets.get(slowest.point, ()), words)
    return Choice(points, dense, meets)


def export_chosen(job: Job, plans: NestedPlans, choice: Choice) -> dict[str, Path]:
    """Bundles and plans of the front, the dense one first."""
    made = {DENSE: job.dense}
    with job.clock.part("exports"):
        task = job.progress.add_task("exports", total=len(choice.candidates))
        for one in choice.candidates:
            plan = plans.plan(one.point)
            made[one.point.name] = export_point(job, plan, job.args.out / one.point.name)
            save_plan(plan, job.args.out / f"{one.point.name}.json")
            job.progress.advance(task)
    return made


def play_chosen(
    job: Job, made: dict[str, Path], setting: Setting, seeds: range
) -> dict[str, list[Outcome]]:
    """Every bundle's outcomes on the same seeds."""
    with job.clock.part("episodes"):
        return play(
            made,
            setting,
            seeds,
            workers=job.args.workers,
            work=job.state,
            progress=job.progress,
        )
