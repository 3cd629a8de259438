"""`trimvla recover`: weights of a trimmed policy, trained anew against the dense policy without
labels. Finds the parts; `launch.recovery` does the work.
"""

from __future__ import annotations

import os

import torch

from trimvla.launch.console import progress_bar
from trimvla.launch.exporting.named_plan import named_plan
from trimvla.launch.exporting.policy_source import check_planner, find_source, load_policy
from trimvla.launch.exporting.unwinding import unwinding
from trimvla.launch.recovery.options import Args
from trimvla.launch.recovery.parts import (
    DTYPES,
    check_head,
    gathered,
    recipe_of,
    record_of,
    request_of,
)
from trimvla.launch.recovery.results import RecoverResult
from trimvla.launch.recovery.session import session
from trimvla.launch.recovery.work import recover
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.recovery.patch import read_patch, save_patch, weights_digest
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.errors import ConfigError


def run(args: Args) -> RecoverResult:
    """Gather, teach, train, write the patch; its losses before and after."""
    source = find_source(args.source)
    check_planner(source)
    dense = load_policy(source, args.preset, args.checkpoint)
    assert isinstance(dense, CogAct)  # what families that calibrate build
    plan = named_plan(args.plan, dense.cfg)
    if plan.dense:
        raise ConfigError(
            f"{args.plan}: expected a plan that leaves something out, got a dense one"
        )
    check_head(args, plan)
    student = trim(dense, plan)
    digest = weights_digest(dense)
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    with unwinding(), session(args.out, request_of(args, dense, plan, digest)) as kept:
        with progress_bar(counts=True) as progress:
            task = progress.add_task("frames", total=None)
            frames = kept.frames(lambda: gathered(args, source, dense, plan, kept))
            found = recover(
                dense,
                student,
                frames,
                kept,
                recipe_of(args),
                minutes=args.within,
                dtype=DTYPES[args.dtype],
                report=lambda what, done, total: progress.update(
                    task, description=what, completed=done, total=total
                ),
            )
        record = record_of(args, dense, plan, digest, frames=frames, found=found)
        save_patch(args.out, found.weights, record, DTYPES[args.dtype])
    made = read_patch(args.out)
    lines = {"loss": record, "the head's loss": record.head}
    for what, each in lines.items():
        if each is None:
            continue
        before = f"{each.loss_before:.4f} (p90 {each.p90_before:.4f})"
        after = f"{each.loss_after:.4f} (p90 {each.p90_after:.4f})"
        args.console().print(
            f"{args.out}: {what} on held-out images {before} before, {after} after {record.steps}"
            " steps"
        )
    return RecoverResult(
        ok=True,
        patch=args.out,
        sha256=made.spec.sha256,
        bytes=args.out.stat().st_size,
        recovery=record,
        resumed_at=found.resumed_at,
        steps_from="--minutes" if args.steps is None else "--steps",
    )
