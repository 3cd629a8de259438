"""The episodes of a match as the verb's answer: rates, the comparison, a curve. Plays nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import structs

from trimvla.launch.evaluation.match import Match
from trimvla.launch.evaluation.options import CANDIDATE, REFERENCE, Args
from trimvla.launch.evaluation.policies import estimate
from trimvla.launch.evaluation.report import (
    curve_rows,
    motion_pairs,
)
from trimvla.launch.evaluation.results import BundleResult, Estimate, EvalResult
from trimvla.policies.sizes.roofline import DEVICES
from trimvla.sim.evaluation.latency import split
from trimvla.sim.evaluation.statistics import compare
from trimvla.sim.evaluation.success import Success

if TYPE_CHECKING:
    from trimvla.sim.evaluation.rollout import PairedOutcomes, WorkItem


def result_of(
    args: Args,
    match: Match,
    rounds: Mapping[WorkItem, PairedOutcomes],
    results: Mapping[str, Mapping[str, Success]],
) -> EvalResult:
    """The result: what was requested, and what came of it."""
    first = results[match.conditions[0]]
    played = {
        "seed": match.seeds[0],
        "variant": args.variant,
        "swap_instruction": args.swap_instruction,
        "execute": match.setting.pace.execute,
    }
    result = EvalResult(
        ok=True,
        bundle=args.names[CANDIDATE],
        env=args.env,
        backend=args.backend,
        **structs.asdict(first[CANDIDATE]),
        **played,
    )
    if args.against is not None:
        reference = first[REFERENCE]
        result = structs.replace(
            result,
            motion_comparison=motion_pairs(match, rounds, match.conditions[0]),
            against=BundleResult(bundle=args.against, **structs.asdict(reference), **played),
            comparison=compare(first[CANDIDATE].outcomes, reference.outcomes, margin=args.margin),
        )
    if args.latency is not None or args.rungs:
        latencies = match.setting.latencies
        result = structs.replace(
            result,
            curve=curve_rows(args.names, results, latencies, rounds, args.margin),
            estimates=estimates(args),
            control_hz=match.control_hz,
            chunks=args.chunks,
        )
    return result


def estimates(args: Args) -> list[Estimate]:
    """Where the latencies of devices come from."""
    words = [word.partition(":") for word in split(args.latency or "")]
    devices = [(device, share) for device, _, share in words if device in DEVICES]
    return [
        estimate(name, device, float(share or 1))
        for device, share in devices
        for name in args.names.values()
    ]
