"""`trimvla eval`: how often does a bundle succeed in simulation? Rate, interval and the outcome of every seed.

With `--against` a second bundle, the reference, plays the same seeds in turn, and the two are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.options import Options, Result
from trimvla.runtime import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.policy import Policy

TASK_FIELDS = ("horizon", "dim", "control_hz", "kinds")  # of a manifest's `action`: alike, or it is another robot


@dataclass(frozen=True)
class Args(Options):
    """Play episodes with a bundle, or with two on the same seeds; the simulator waits while the policy thinks."""

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    against: str | None = None
    """The reference: a bundle that plays the same episodes, to be compared with."""

    margin: float = 0.05
    """How much lower than the reference's the success rate may be; 0.05 is five points."""

    env: Literal["tabletop"] = "tabletop"
    """The environment."""

    episodes: int = 200
    """How many; the interval is about +-6 points at 200."""

    seed: int = 1000
    """Seed of the first episode; the others follow. Demonstrations begin at 1000000."""

    swap_instruction: bool = False
    """Say a sentence about another object; success is still judged by the original goal."""

    variant: Literal["default", "lighting", "texture", "camera", "distractors", "all"] = "default"
    """What the pictures look like."""

    execute: int = 2
    """Steps of a chunk that are executed before the next look; with 1 the last chunks vote on every action."""

    backend: str = "onnxruntime"
    """What executes the stages."""

    provider: str | None = None
    """What executes inside the backend, such as CUDAExecutionProvider of ONNX Runtime (default: the CPU)."""

    threads: int = 1
    """Threads of an operator; 0 takes all cores."""

    workers: int = 1
    """Processes that play, each with policies of its own; the outcomes are the same."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        low = [f"--{name}" for name in ("episodes", "execute", "workers") if getattr(self, name) < 1]
        wrong = [f"expected at least 1 for {', '.join(low)}"] if low else []
        if not 0 < self.margin < 1:
            wrong.append(f"expected 0 < --margin < 1 (0.05 is five points), got {self.margin}")
        if wrong:
            raise ConfigError("; ".join(wrong))


@dataclass(frozen=True)
class Bundles:
    """Opens policies, by role and in the order in which they play; travels to other processes."""

    names: Mapping[str, str]
    backend: str
    threads: int
    provider: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[dict[str, Policy]]:
        """Load all, and close them in the end."""
        with ExitStack() as stack:
            load = partial(Policy.load, backend=self.backend, provider=self.provider, threads=self.threads)
            yield {role: stack.enter_context(closing(load(name))) for role, name in self.names.items()}


def run(args: Args) -> Result:
    """Play the episodes with a progress bar.

    The result is `sim.rollout.evaluate`'s, with the bundle named; with a reference also its own such result as
    "against", and `sim.statistics.Comparison` as "comparison".
    """
    from trimvla.sim.statistics import compare

    names = {"candidate": args.bundle} if args.against is None else check_same_task(args.bundle, args.against)
    results = play(args, names)
    told: Result = {"ok": True, "bundle": args.bundle, "env": args.env, "backend": args.backend, **results["candidate"]}
    console = args.console()
    console.print(as_table(args, results))
    if args.against is None:
        low, high = told["interval"]
        console.print(f"success rate {told['success_rate']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
        return told
    outcomes = (results[role]["outcomes"] for role in ("candidate", "reference"))
    comparison = asdict(compare(*outcomes, margin=args.margin))
    console.print(pairs_table(args, comparison))
    console.print(sentence(args.bundle, args.against, comparison))
    if args.swap_instruction:
        console.print("success is judged by the original goal: with the instruction swapped, low rates are good")
    return told | {"against": {"bundle": args.against, **results["reference"]}, "comparison": comparison}


def check_same_task(candidate: str, reference: str) -> dict[str, str]:
    """Role -> bundle, the reference first; ConfigError where the two do not drive the same robot."""
    names = {"reference": reference, "candidate": candidate}
    actions = {role: bundles.load(bundles.resolve(name)).action for role, name in names.items()}
    for field in TASK_FIELDS:
        expected, got = (getattr(actions[role], field) for role in names)
        if expected != got:
            raise ConfigError(
                f"expected bundles for the same task: 'action.{field}' is {expected} in '{reference}', "
                f"got {got} in '{candidate}'"
            )
    return names


def play(args: Args, names: dict[str, str]) -> dict[str, Result]:
    """`sim.rollout.evaluate_all` behind a progress bar."""
    from trimvla.sim.rollout import Setting, evaluate_all

    won = dict.fromkeys(reversed(names), 0)  # the candidate first

    with progress_bar() as progress:
        task = progress.add_task("episodes", total=args.episodes, won="0")

        def count(played: Mapping[str, Any]) -> None:
            for role, outcome in played.items():
                won[role] += outcome.success
            progress.update(task, advance=1, won=" against ".join(map(str, won.values())))

        return evaluate_all(
            Bundles(names, args.backend, args.threads, args.provider),
            Setting(args.variant, args.swap_instruction, args.execute),
            episodes=args.episodes,
            seed=args.seed,
            workers=args.workers,
            progress=count,
        )


def progress_bar() -> Progress:
    """On stderr, so that stdout stays clean."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[won]} succeeded"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def as_table(args: Args, results: Mapping[str, Result]) -> Table:
    """The card: one row a verb, and all; one column a bundle."""
    title = f"{args.bundle} on {args.env} ({args.variant}{', swapped instruction' if args.swap_instruction else ''})"
    sides = [results[role] for role in ("candidate", "reference") if role in results]
    heads = ["succeeded"] if args.against is None else [args.bundle, args.against]
    table = Table("task", *heads, "of", title=title, title_justify="left")
    for verb, (_, episodes) in sides[0]["by_verb"].items():
        table.add_row(verb, *(str(side["by_verb"][verb][0]) for side in sides), str(episodes))
    table.add_section()
    table.add_row("all", *(str(side["successes"]) for side in sides), str(sides[0]["episodes"]))
    if args.against is not None:
        table.add_row("rate", *(f"{side['success_rate']:.3f}" for side in sides))
        table.add_row("95 %", *("{:.3f} to {:.3f}".format(*side["interval"]) for side in sides))
    return table


def pairs_table(args: Args, comparison: Result) -> Table:
    """In how many episodes who succeeded."""
    table = Table("succeeded", "episodes", title="the same episodes", title_justify="left")
    rows = (
        ("both", "both"),
        (f"only {args.bundle}", "candidate_only"),
        (f"only {args.against}, the reference", "reference_only"),
        ("neither", "neither"),
    )
    for label, key in rows:
        table.add_row(label, str(comparison[key]))
    return table


def sentence(candidate: str, reference: str, comparison: Result) -> str:
    """What the numbers allow one to say."""
    (low, high), margin = comparison["interval"], comparison["margin"]
    points = f"{100 * margin:g} points"
    if comparison["non_inferior"]:
        verdict = f"{candidate} is not inferior to {reference} at a margin of {points}"
    elif high < -margin:
        verdict = f"{candidate} is inferior to {reference} by more than {points}"
    else:
        verdict = f"these episodes do not settle whether {candidate} is inferior to {reference} by {points}"
    return (
        f"{verdict}: the difference in success rate is {100 * comparison['difference']:+.1f} points, "
        f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}; McNemar's exact p = {comparison['p_value']:.3g}"
    )
