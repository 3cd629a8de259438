"""`trimvla export` of what is larger than memory: an official checkpoint, or random weights at a
preset's size.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from trimvla.export.inputs import read_tokenizer, with_action
from trimvla.export.streaming.bundle import Wanted, export_streamed
from trimvla.export.streaming.placeholders import (
    KEY,
    placeholder_for,
    placeholder_statistics,
    placeholder_tokenizer,
)
from trimvla.export.streaming.writer import Report
from trimvla.launch.console import transfer_bar
from trimvla.launch.exporting.named_plan import named_plan
from trimvla.launch.exporting.options import ExportOptions
from trimvla.launch.exporting.parity_table import as_table
from trimvla.launch.exporting.results import StreamedResult, parity_of
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.cogact.half import DTYPES
from trimvla.policies.cogact.source import inputs_and_output
from trimvla.policies.cogact.weights import RandomWeights, Weights
from trimvla.policies.families import Family, family_of, find_preset
from trimvla.policies.recovery.patch import check_distilled
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.sizes.counts import plan_by_counts
from trimvla.policies.sizes.memory import precision_named
from trimvla.policies.streaming import Streaming
from trimvla.policies.trimming.plan_by_size import plan_by_sizes
from trimvla.runtime.bundle.manifest import InputsAndOutput, PromptSpec
from trimvla.runtime.bundle.plan import Plan, TokenPlan
from trimvla.runtime.errors import ConfigError

GIB = 1 << 30
PROVING = "a slice against torch"


def run_streamed(args: ExportOptions, weights: Weights, wanted: Wanted) -> StreamedResult:
    """Export, one weight in memory at a time; the slice's parity, and the memory and time taken."""
    if args.guided:
        source = "an official checkpoint or random weights"
        raise ConfigError(f"expected no --guided for {source}: not exported from these yet")
    started = time.monotonic()
    memory_of = family_of(wanted.cfg).memory
    assert memory_of is not None  # of every family that is streamed
    largest = memory_of(wanted.cfg, wanted.plan, wanted.precision).weights
    with shown(sum(largest.values())) as report:
        manifest = export_streamed(
            weights,
            wanted,
            args.out,
            overwrite=args.overwrite,
            resume=not args.no_resume,
            report=report,
        )
    peak = peak_bytes()
    stage = max(largest.values())
    parity = parity_of(manifest)
    console = args.console()
    console.print(as_table(parity))
    console.print(parity.scope or "")
    memory = f"peak memory {peak / GIB:.2f} GiB"
    console.print(f"largest stage {stage / GIB:.2f} GiB of weights, {memory}")
    files = manifest.files
    return StreamedResult(
        ok=True,
        bundle=args.out,
        dtype=wanted.precision,
        parity=parity,
        bytes=sum(file.bytes for file in files.values()),
        stage_bytes={
            name: files[f"{spec.file}.data"].bytes for name, spec in manifest.stages.items()
        },
        seconds=round(time.monotonic() - started, 1),
        peak_bytes=peak,
        peak_over_largest_stage=round(peak / stage, 3),
    )


def streamed_precision(text: str) -> str:
    """The precision that is meant, if a policy can be streamed in it."""
    name = precision_named(text)
    if name not in DTYPES:
        raise ConfigError(
            f"expected --dtype as one of {list(DTYPES)} for a policy that is streamed, got {text!r}"
        )
    return name


def random_source(args: ExportOptions) -> tuple[Weights, Wanted]:
    """Random weights, a plan by sizes, and placeholders for what a checkpoint would bring."""
    cfg = find_preset(args.preset or "")
    family = family_of(cfg)
    if family.streaming is not None:
        return blank_source(args, cfg, family, family.streaming)
    if family.lend_weights is None:
        raise ConfigError(
            f"expected a preset of a family that is streamed, got one of '{family.name}'"
        )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    plan = named_plan(args.plan, cfg) if args.plan else counted_plan(args, cfg, now)
    described = with_action(inputs_and_output(cfg, KEY), *args.action)
    prompt = prompt_of(described)
    given = read_tokenizer(args.tokenizer, prompt, family) if args.tokenizer else None
    wanted = Wanted(
        cfg,
        plan,
        streamed_precision(args.dtype),
        described=described,
        statistics=placeholder_statistics(cfg),
        tokenizer=given or placeholder_tokenizer(cfg.prompt),
    )
    return RandomWeights(cfg, args.seed), wanted


def blank_source(
    args: ExportOptions,
    cfg: Any,  # noqa: ANN401 - the family's
    family: Family,
    streaming: Streaming,
) -> tuple[Weights, Wanted]:
    """The same for a family with `streaming`."""
    tokens = None if args.tokens is None else TokenPlan(keep=args.tokens)
    counted = plan_by_counts(family.trimmable(cfg), **args.kept, tokens=tokens)
    plan = named_plan(args.plan, cfg) if args.plan else counted
    opened = streaming.placeholder(cfg, KEY)
    described = with_action(family.describe(opened, plan), *args.action)
    prompt = prompt_of(described)
    given = read_tokenizer(args.tokenizer, prompt, family) if args.tokenizer else None
    wanted = Wanted(
        cfg,
        plan,
        streamed_precision(args.dtype),
        described=described,
        statistics=opened.table,
        tokenizer=given or placeholder_for(prompt),
    )
    return RandomWeights(cfg, args.seed, streaming.build_meta(cfg)), wanted


def counted_plan(args: ExportOptions, cfg: PolicyConfig, created_utc: str) -> Plan:
    """The plan that --layers, --mlp-keep, --tokens and --cache-interval describe."""
    return plan_by_sizes(
        cfg,
        **args.kept,
        tokens=None if args.tokens is None else TokenPlan(keep=args.tokens),
        created_utc=created_utc,
    )


def prompt_of(described: InputsAndOutput) -> PromptSpec:
    """How an instruction is read: what is streamed has a language model."""
    assert described.prompt is not None
    return described.prompt


def official_source(args: ExportOptions, opened: Checkpoint) -> tuple[Weights, Wanted]:
    """A published checkpoint, mapped, with its own statistics and tokenizer."""
    cfg = opened.cfg
    family = family_of(cfg)
    plan = named_plan(args.plan, cfg)
    check_distilled(plan, None)
    described = with_action(family.describe(opened, plan), *args.action)
    wanted = Wanted(
        cfg,
        plan,
        streamed_precision(args.dtype),
        described=described,
        statistics=opened.table,
        tokenizer=read_tokenizer(opened.tokenizer, prompt_of(described), family),
    )
    assert family.lend_weights is not None
    return family.lend_weights(opened.directory, cfg, args.checkpoint), wanted


@contextmanager
def shown(total: int) -> Iterator[Report]:
    """A bar of bytes."""
    with transfer_bar() as progress:
        bar = progress.add_task(PROVING, total=total)
        yield lambda file, count: progress.update(bar, description=file, advance=count)


def peak_bytes() -> int:
    """The most memory that this process, or a child of it, ever held; mapped pages are counted."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024
