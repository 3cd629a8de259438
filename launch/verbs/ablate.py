"""`trimvla ablate`: every part of a plan by itself and together, and the controls: success, time
and cost in one table.

Makes a plan and a bundle for every row (`export.ablation`), lets all of them take turns at the
clock and play the same episodes, and writes JSON, table and picture (`ablate_report`). Bundles and
outcomes are kept in the work folder, so a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from tyro.conf import Positional

from trimvla.export.bundle import BundleRequest, described_by, export_policy
from trimvla.export.verify import checkpoint_beside
from trimvla.launch import tables
from trimvla.launch.ablation.play import play
from trimvla.launch.ablation.report import NAME, as_markdown, as_table, summarise, with_times
from trimvla.launch.ablation.results import AblationResult
from trimvla.launch.ablation.rows import DENSE, ROWS, WHOLE, Amounts, Row, request
from trimvla.launch.bench import turns as benchmark
from trimvla.launch.bench.subjects import Asked, Party, open_party, torch_subjects
from trimvla.launch.bench.turns import COMPILED, EAGER, Samples, Subject
from trimvla.launch.console import Progress, progress_bar
from trimvla.launch.evaluation.env_args import EnvArgs, check_fits
from trimvla.launch.exporting.calibration import simulate
from trimvla.launch.exporting.played_frames import PlayedEnv, calibration_from_env
from trimvla.launch.exporting.policy_source import check_planner
from trimvla.launch.outputs import Output
from trimvla.launch.result import as_plain
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.planner import make_plan, time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_statistics import read_table
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.sim.episodes import MAKERS, make_task
from trimvla.sim.evaluation.rollout import Setting, check_episodes, choose_seeds
from trimvla.sim.evaluation.success import Outcome
from trimvla.sim.evaluation.virtual_time import Pace
from trimvla.sim.evaluation.workers import spread

MAIN = (DENSE, WHOLE)  # rows that play more episodes, and are compiled
INSTRUCTION = "pick up the red cube"
CAMERA_SHAPE = (480, 640, 3)  # a usual camera; the policy shrinks it


@dataclass(frozen=True)
class Args(EnvArgs):
    """Success, time and cost of a dense bundle, of every part of its trimming, and of the controls,
    in one run.
    """

    bundle: Positional[str] = "tabletop"
    """The dense bundle, with its checkpoint beside it."""

    env: str = "tabletop"
    """What is played, as `eval` knows it: tabletop, simpler:TASK (extra `simpler`), gymnasium:ID,
    or module:attribute of your own (docs/guides/own-environment.md).
    """

    rows: tuple[str, ...] = ()
    """These rows of the table only; the dense one is always there."""

    layers: int = 11
    """Language layers to keep."""

    mlp_keep: float = 0.75
    """Share of the MLP channels to keep."""

    tokens: int = 56
    """Visual tokens to keep."""

    after: int = 5
    """Kept language layers that still see every token."""

    cache_interval: int = 5
    """Run the head's blocks at every n-th DDIM step only."""

    milder_layers: int = 14
    """Layers of the milder plan."""

    milder_tokens: int = 112
    """Tokens of the milder plan."""

    milder_cache_interval: int = 5
    """`--cache-interval` of the milder plan."""

    episodes: int | None = None
    """Of the dense bundle and of the whole plan, on the same seeds (default: all official ones,
    else 300).
    """

    others: int = 100
    """Episodes of every other row: the first of these seeds."""

    seed: int | None = None
    """Of the first episode.

    Where there are official episodes, a seed means others than these; else it is 1000.
    """

    draw: int = 1000
    """Seed of what is drawn besides: calibration frames, random layers and tokens."""

    execute: int = 2
    """Steps of a chunk that are executed before the next look."""

    margin: float = 0.05
    """Loss of success that still counts as not inferior."""

    rounds: int = 50
    """Turns of every row at the clock."""

    warmup: int = 3
    """Turns that are not counted."""

    threads: int = 1
    """Threads of an operator, while the clock runs."""

    compiled: bool = True
    """Also compile the dense policy and the one under the whole plan (minutes)."""

    workers: int = 2
    """Processes that play episodes."""

    frames: int = 64
    """Calibration frames, drawn from demonstrations that are made for it."""

    work: Path = Path("runs/ablation")
    """Bundles and outcomes, so that a stopped run goes on."""

    out: Path = Path("benchmarks")
    """Where `ablation.json` and `ablation.png` go; of another environment than the tabletop,
    `ablation_TASK`.
    """

    page: Path | None = None
    """A text whose part between the two marks becomes the table."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        positive = ("episodes", "others", "execute", "rounds", "workers", "frames")
        wrong = [
            f"--{name}"
            for name in positive
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if wrong:
            raise ConfigError(f"expected at least 1 for {', '.join(wrong)}")
        if unknown := sorted(set(self.rows) - {row.name for row in ROWS}):
            raise ConfigError(f"expected --rows out of {[row.name for row in ROWS]}, got {unknown}")

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        folders = (Output("--work", self.work, folder=True), Output("--out", self.out, folder=True))
        return *folders, Output("--page", self.page)

    @property
    def chosen(self) -> list[Row]:
        """The rows, in the order of the table."""
        return [row for row in ROWS if not self.rows or row.name in (DENSE, *self.rows)]

    @property
    def suffix(self) -> str:
        """Of the names of files: nothing for the tabletop, else _TASK."""
        words = re.split(r"[^\w.-]+", self.env)[1:]
        return "".join(f"_{word}" for word in words if word)

    @property
    def is_ours(self) -> bool:
        """Whether what is played is an environment of ours, with demonstrations."""
        return self.env.partition(":")[0] in MAKERS

    def amounts(self, row: Row) -> Amounts:
        """What the knobs of a row keep."""
        full = Amounts(self.layers, self.mlp_keep, self.tokens, self.after, self.cache_interval)
        if not row.milder:
            return full
        interval = self.milder_cache_interval
        return replace(
            full, layers=self.milder_layers, tokens=self.milder_tokens, cache_interval=interval
        )


@dataclass(frozen=True)
class Origin:
    """What every row is made from: the dense bundle and calibration data; and where the rows'
    bundles go.
    """

    dense: Path
    data: Calibration
    work: Path


def run(args: Args) -> AblationResult:
    """Export, time, play, write; the table for people."""
    terminate_as_interrupt()
    if args.page is not None:
        read_text(args.page, "")
    dense = bundles.resolve(args.bundle)
    check_planner(dense)
    setting, seeds = find_episodes(args)
    work = args.work / f"{weights_digest(dense)[:12]}{args.suffix}"
    with progress_bar(counts=True, transient=False) as progress:
        origin = Origin(dense, calibrate(args, dense, progress), work)
        made = make_bundles(args, origin, progress)
        samples, subjects = take_times(args, made, progress)
        played = play_all(args, made, setting, seeds, work=work, progress=progress)
    left_out = ("json", "work", "out")
    result = AblationResult(
        ok=True,
        rows=summarise(made, subjects, samples, played, args.margin),
        settings={name: value for name, value in asdict(args).items() if name not in left_out},
    )
    save(result, args)
    args.console().print(as_table(result.rows))
    return result


def save(result: AblationResult, args: Args) -> None:
    """JSON, picture, and the table in the text that is named."""
    from trimvla.launch.figures.tradeoff import draw_tradeoff

    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_plain(result), indent=1)
    (args.out / f"ablation{args.suffix}.json").write_text(text + "\n")
    draw_tradeoff(with_times(result.rows), args.out / f"ablation{args.suffix}.png")
    if args.page is not None:
        args.page.write_text(read_text(args.page, as_markdown(result.rows)))


def read_text(path: Path, table: str) -> str:
    """The text with this table between its marks. Raises ConfigError where it is no such text."""
    try:
        return tables.insert(path.read_text(), NAME, table)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a text for --page, got: {error}") from None


def weights_digest(directory: Path) -> str:
    """sha256 of the checkpoint beside a bundle."""
    return hashlib.sha256(
        directory.with_name(f"{directory.name}.safetensors").read_bytes()
    ).hexdigest()


def calibrate(args: Args, directory: Path, progress: Progress) -> Calibration:
    """Frames of fresh demonstrations of what is played."""
    task = progress.add_task("calibration frames", total=1)
    cfg = PolicyConfig.from_dict(bundles.load(directory).policy)
    tokenizer = directory / bundles.TOKENIZER
    if args.is_ours:
        data = simulate(
            args.work / "demos", cfg, tokenizer, frames=args.frames, seed=args.draw, env=args.env
        )
    else:
        played = PlayedEnv(args.env, args.env_options([str(directory)]), directory)
        words = load_tokenizer(tokenizer, error=ConfigError)
        data = calibration_from_env(played, cfg, words, args.frames, args.draw)
    progress.update(task, completed=1)
    return data


def make_bundles(args: Args, origin: Origin, progress: Progress) -> dict[str, Path]:
    """Row -> bundle, in the order of the table."""
    task = progress.add_task("exports", total=len(args.chosen))
    made: dict[str, Path] = {}
    for name, path in spread(partial(make_some, args, origin), args.chosen, args.workers):
        made[name] = path
        progress.advance(task)
    return {row.name: made[row.name] for row in args.chosen}


def make_some(args: Args, origin: Origin, rows: Sequence[Row]) -> Iterator[tuple[str, Path]]:
    """Some rows' bundles, in a process of its own."""
    torch.set_num_threads(1)
    policy = checkpoint_beside(origin.dense)
    assert isinstance(policy, CogAct)  # what families that calibrate build
    for row in rows:
        yield (
            row.name,
            origin.dense if row.name == DENSE else make_bundle(args, row, origin, policy),
        )


def make_bundle(args: Args, row: Row, origin: Origin, policy: CogAct) -> Path:
    """The row's bundle, made if it is not there."""
    dense = origin.dense
    directory = origin.work / row.slug
    steps = policy.cfg.diffusion.inference_steps
    source = bundles.load(dense)
    plan = make_plan(
        policy, origin.data, request(row, args.amounts(row), steps, args.draw), time_stamp()
    )
    if not (directory.exists() and same(plan, bundles.load(directory).plan)):
        wanted = BundleRequest(
            policy=policy,
            described=described_by(source),
            plan=plan,
            statistics=read_table(dense / bundles.STATISTICS),
            tokenizer=dense / bundles.TOKENIZER,
            out=directory,
            overwrite=True,
        )
        export_policy(wanted)
    return directory


def same(one: Plan, other: Plan) -> bool:
    """Whether two plans keep the same, whenever they were made."""
    return msgspec.structs.replace(one, provenance=None) == msgspec.structs.replace(
        other, provenance=None
    )


def take_times(
    args: Args, made: Mapping[str, Path], progress: Progress
) -> tuple[Samples, list[Subject]]:
    """All rows in turns: ONNX Runtime, eager torch and, but for controls, compiled torch."""
    picture = np.random.default_rng(0).integers(0, 256, CAMERA_SHAPE, np.uint8)
    asked = Asked(picture, INSTRUCTION)
    with ExitStack() as stack:
        parties = [
            replace(
                open_party(str(path), "onnxruntime", args.threads, stack),
                dense=name == DENSE,
                name=name,
            )
            for name, path in made.items()
        ]
        subjects = [own(party, asked) for party in parties]
        task = progress.add_task("torch", total=None)
        subjects += torch_subjects(parties, (EAGER,), args.threads, asked, stack)
        if args.compiled:
            compiled = [party for party in parties if party.name in MAIN]
            subjects += torch_subjects(compiled, (COMPILED,), args.threads, asked, stack)
        progress.update(task, total=1, completed=1)
        turns = progress.add_task("turns at the clock", total=args.warmup + args.rounds)
        samples = benchmark.measure(
            subjects,
            rounds=args.rounds,
            warmup=args.warmup,
            watch=lambda turn: progress.update(turns, completed=turn),
        )
    return samples, subjects


def own(party: Party, asked: Asked) -> Subject:
    """The bundle by ONNX Runtime, without sockets."""
    calls = benchmark.policy_calls(party.policy, asked.of(party.policy))
    return Subject(party.name, party.name, "onnxruntime", party.dense, calls)


def find_episodes(args: Args) -> tuple[Setting, range]:
    """What is played.

    Raises ConfigError where there is no such task or there are not so many episodes.
    """
    options = args.env_options([args.bundle])
    with closing(make_task(args.env, options)) as task:
        check_fits(task, [args.bundle])
        official, seeds = choose_seeds(task.official, args.episodes, args.seed, usual=300)
        check_episodes(task, seeds, official=official)
    return Setting(args.env, official, Pace(execute=args.execute), options=options), seeds


def play_all(
    args: Args,
    made: Mapping[str, Path],
    setting: Setting,
    seeds: range,
    *,
    work: Path,
    progress: Progress,
) -> dict[str, list[Outcome]]:
    """Row -> its outcomes by rising seed; the dense bundle and the whole plan play the most
    seeds.
    """
    played: dict[str, list[Outcome]] = {}
    for is_main, count in ((True, len(seeds)), (False, min(args.others, len(seeds)))):
        rows = {name: path for name, path in made.items() if (name in MAIN) == is_main}
        if rows:
            played |= play(
                rows, setting, seeds[:count], workers=args.workers, work=work, progress=progress
            )
    return {name: played[name] for name in made}
