"""`trimvla eval`: how often does a bundle succeed in simulation?

Rate, interval and the outcome of every seed.

With `--against` a second bundle, the reference, plays the same seeds in turn, and the two are
compared; with `--rungs` several do, as a ladder. With `--latency` the time that a policy takes to
think is charged to the simulated clock. With `--data` nothing is played: the bundle's actions are
compared with those of a data set.
"""

from __future__ import annotations

from collections.abc import Mapping

from trimvla.launch.datasets.report import run_over_data
from trimvla.launch.datasets.results import DataEvalResult
from trimvla.launch.evaluation.match import prepare
from trimvla.launch.evaluation.options import Args
from trimvla.launch.evaluation.play import play
from trimvla.launch.evaluation.policies import check_same_task
from trimvla.launch.evaluation.report import (
    as_table,
    conclusion,
    curve_table,
    pairs_table,
    save,
)
from trimvla.launch.evaluation.results import EvalResult
from trimvla.launch.evaluation.summary import result_of
from trimvla.launch.motion.table import motion_table
from trimvla.launch.system.signals import terminate_as_interrupt
from trimvla.sim.evaluation.motion_pairs import motion_words
from trimvla.sim.evaluation.success import Success


def run(args: Args) -> EvalResult | DataEvalResult:
    """Play the episodes with a progress bar; the candidate's success in the first condition.

    With a reference also its own success and the comparison; with several bundles or latencies a
    curve, one row for each of both.
    """
    terminate_as_interrupt()
    if args.data is not None:
        return run_over_data(args)
    check_same_task(list(args.names.values()))
    match = prepare(args)
    rounds = play(args, match)
    results = match.results(rounds)
    result = result_of(args, match, rounds, results)
    show(args, result, results[match.conditions[0]])
    if args.out is not None:
        save(args, result, match, rounds)
    return result


def show(args: Args, result: EvalResult, first: Mapping[str, Success]) -> None:
    """Print the card."""
    console = args.console()
    console.print(as_table(args, first))
    if result.curve is not None:
        console.print(curve_table(result.curve))
    if result.motion is not None:
        console.print(motion_table(result.motion, f"how {result.bundle} moves"))
    if args.against is None or result.comparison is None:
        low, high = result.interval
        interval = f"95 % interval {low:.3f} to {high:.3f}"
        console.print(f"success rate {result.success_rate:.3f}, {interval}")
        return
    console.print(pairs_table(args, result.comparison))
    console.print(conclusion(args.bundle, args.against, result.comparison))
    if result.motion_comparison is not None:
        console.print(motion_words(args.bundle, args.against, result.motion_comparison))
    if args.swap_instruction:
        words = "success is judged by the original goal"
        console.print(f"{words}: with the instruction swapped, low rates are good")
