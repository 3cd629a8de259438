"""`trimvla eval`: how often does a bundle succeed in simulation? Rate, interval and the outcome of every seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from trimvla.launch.options import Options, Result
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.policy import Policy


@dataclass(frozen=True)
class Args(Options):
    """Play episodes with a bundle; the simulator waits while the policy thinks."""

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

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

    execute: int = 1
    """Steps of a chunk that are executed before the next look; 1 lets the last chunks vote."""

    backend: str = "onnxruntime"
    """What executes the stages."""

    threads: int = 1
    """Threads of an operator; 0 takes all cores."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        wrong = [f"--{name}" for name in ("episodes", "execute") if getattr(self, name) < 1]
        if wrong:
            raise ConfigError(f"expected at least 1 for {', '.join(wrong)}")


def run(args: Args) -> Result:
    """Play the episodes with a progress bar; the result is `sim.rollout.evaluate`'s, with the bundle named."""
    from trimvla.sim.rollout import evaluate

    policy = Policy.load(args.bundle, backend=args.backend, threads=args.threads)
    with progress_bar() as progress:
        task = progress.add_task("episodes", total=args.episodes, won=0)
        won = 0

        def count(outcome: Any) -> None:  # noqa: ANN401 - sim.rollout.Outcome, imported lazily
            nonlocal won
            won += outcome.success
            progress.update(task, advance=1, won=won)

        result = evaluate(
            policy,
            episodes=args.episodes,
            seed=args.seed,
            swap_instruction=args.swap_instruction,
            variant=args.variant,
            execute=args.execute,
            progress=count,
        )
    policy.close()
    console, (low, high) = args.console(), result["interval"]
    console.print(as_table(args, result))
    console.print(f"success rate {result['success_rate']:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    return {"ok": True, "bundle": args.bundle, "env": args.env, "backend": args.backend} | result


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


def as_table(args: Args, result: dict[str, Any]) -> Table:
    """The card: one row a verb, and all."""
    title = f"{args.bundle} on {args.env} ({args.variant}{', swapped instruction' if args.swap_instruction else ''})"
    table = Table("task", "succeeded", "of", title=title, title_justify="left")
    for verb, (successes, episodes) in result["by_verb"].items():
        table.add_row(verb, str(successes), str(episodes))
    table.add_section()
    table.add_row("all", str(result["successes"]), str(result["episodes"]))
    return table
