"""The proof for a policy that torch cannot hold: a thin slice of it at its true widths, exported by
the same code.

Two layers of every part, the plan cut down to them, the same weights through the same writer; then
the graphs in ONNX Runtime against torch in float32, boundary by boundary, one stage in memory at a
time. It shows what graphs of these widths compute and that weights land where they belong; the
whole graphs are read by `onnx.checker` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import torch
from torch import Tensor

from trimvla.export.compare import Comparison, LowerComparison, ScaledComparison, report
from trimvla.export.graphs.stages import stage_spec
from trimvla.export.parity import Parity
from trimvla.export.streaming.weightless import skeleton, stand_in
from trimvla.export.streaming.writer import Journal, Writer
from trimvla.export.verify import LIMITS, as_arrays, limit_of, shared, tolerances
from trimvla.policies.cogact.half import DTYPES, in_precision
from trimvla.policies.cogact.layout import build_meta
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.stages import example_inputs, stages
from trimvla.policies.cogact.weights import Weights
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.stage import Stage
from trimvla.policies.trimming.kept import part_of
from trimvla.policies.trimming.trimmed import kept_layers, trim
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.plan import Plan

LAYERS = 2  # of the decoder, of each encoder and of the head
# whose weights a stage reads
PARTS = {"vision": "vision.", "language": "language.", "action": "head."}
RUNS = ("float32", "float16")  # precisions that ONNX Runtime's CPU has kernels for

Arrays = Mapping[str, np.ndarray]


def prove_slice(weights: Weights, cfg: PolicyConfig, plan: Plan, precision: str) -> Parity:
    """Export the slice in float32 and in the precision, and compare.

    Args:
        weights: the whole policy's.
        cfg: the whole policy's sizes.
        plan: what is kept of it.
        precision: a key of `half.DTYPES`.

    Returns:
        A report as `verify.parity` gives it, with the slice's own words: {"ok", "compared",
        "failed", "absent", "groups", "against", "scope"}. Differences are over the root mean square
        of torch's array.
    """
    small, cut = slice_of(cfg, plan)
    precisions = dict.fromkeys(("float32", *(name for name in RUNS if name == precision)))
    rows: dict[str, Comparison] = {}
    for name in precisions:
        mine = {
            output: row_of(output, name, tolerance)
            for output, tolerance in tolerances(stages(small, cut)).items()
        }
        compare(weights, small, cut, name, mine)
        rows |= {row.group: row for row in mine.values()}
    against = f"torch {torch.__version__}, float32"
    return msgspec.structs.replace(
        report(rows), against=against, scope=scope(precision, precisions)
    )


def row_of(output: str, precision: str, tolerance: float) -> Comparison:
    """A boundary's row: within float32's tolerance, or within the limits that a lower precision has
    in `verify`.
    """
    group = f"{output}, {precision}"
    if precision in LIMITS:
        return LowerComparison.within(group, limit_of(precision, output))
    return ScaledComparison(group, tolerance)


def scope(precision: str, proved: Mapping[str, None]) -> str:
    """What was compared, in words."""
    beyond = (
        ""
        if precision in proved
        else f"; {precision} was not run, ONNX Runtime's CPU has no kernels for it"
    )
    what = f"the first {LAYERS} kept layers of decoder, encoders and head at their true widths"
    return (
        f"{what}, through ONNX Runtime in {' and '.join(proved)}{beyond}; the whole graphs by"
        " onnx.checker"
    )


def slice_of(cfg: PolicyConfig, plan: Plan) -> tuple[PolicyConfig, Plan]:
    """Sizes and plan of the slice: weights keep their names, so layers that the plan drops are
    still counted.
    """
    replace = msgspec.structs.replace
    kept = kept_layers(plan, cfg)[:LAYERS]
    last = {vit.name: min(vit.feature_block, LAYERS - 1) for vit in cfg.vision}
    small = replace(
        cfg,
        vision=tuple(
            replace(vit, depth=last[vit.name] + 1, feature_block=last[vit.name])
            for vit in cfg.vision
        ),
        language=replace(cfg.language, layers=kept[-1] + 1),
        head=replace(cfg.head, depth=min(LAYERS, cfg.head.depth)),
    )
    vision = plan.vision
    if vision is not None and vision.patches is not None:
        after = min(vision.patches.after, *last.values())  # at least one block behind it
        vision = replace(vision, patches=replace(vision.patches, after=after))
    tokens = plan.tokens and replace(plan.tokens, after=min(plan.tokens.after, len(kept) - 1))
    cut = replace(
        plan,
        policy=None,
        layers=None if plan.layers is None else kept,
        channels=None if plan.channels is None else plan.channels[: len(kept)],
        tokens=tokens,
        vision=vision,
    )
    return small, cut


def compare(
    weights: Weights, cfg: PolicyConfig, plan: Plan, precision: str, rows: Mapping[str, Comparison]
) -> None:
    """Export the slice stage by stage and add every output's difference to its row."""
    policy = stand_in(cfg, plan, DTYPES[precision])
    generator = torch.Generator().manual_seed(0)
    samples = {
        f"bucket {bucket}": example_inputs(cfg, plan, bucket, generator)
        for bucket in cfg.prompt.buckets
    }
    with TemporaryDirectory(prefix="trimvla-slice-") as folder:
        for stage in stages(cfg, plan):
            path = Path(folder) / f"{stage.name}.onnx"
            _write(policy, stage, weights, path)
            got = dict(_run(path, cfg, plan, stage, samples))
            path.with_name(f"{path.name}.data").unlink()
            torch_policy = load_part(weights, cfg, plan, stage.name, DTYPES[precision])
            for key, tensors in samples.items():
                expected = _expect(stage, torch_policy, tensors, got[key])
                for name, value in expected.items():
                    add_row(rows[name], key, value, got[key][name])
                tensors.update(expected)


def _write(policy: CogAct, stage: Stage, weights: Weights, path: Path) -> None:
    journal = Journal(path.with_suffix(".journal"), {})
    bones = skeleton(policy, stage, f"{path.name}.data")
    Writer(policy.plan, weights, journal).write_stage(bones, path)
    journal.close()


def _run(
    path: Path,
    cfg: PolicyConfig,
    plan: Plan,
    stage: Stage,
    samples: Mapping[str, Mapping[str, Tensor]],
) -> Iterator[tuple[str, Arrays]]:
    """Every sample through the graph."""
    with closing(create("onnxruntime", path, stage_spec(cfg, stage, path.name, plan))) as runner:
        for key, tensors in samples.items():
            yield key, runner.run(as_arrays({name: tensors[name] for name in stage.inputs}))


def load_part(
    weights: Weights, cfg: PolicyConfig, plan: Plan, stage: str, dtype: torch.dtype
) -> CogAct:
    """The policy under the plan in float32, with what `dtype` leaves of one stage's weights; it has
    no others.
    """
    dense = build_meta(cfg)
    stored = {
        name: weight.dtype for name, weight in in_precision(dense, dtype).state_dict().items()
    }
    needed = {
        part_of(name, plan).name
        for name in trim(dense, plan).state_dict()
        if name.startswith(PARTS[stage])
    }
    values: dict[str, Tensor] = {}
    for name in needed:
        with weights.lend(name) as weight:
            values[name] = weight.to(stored[name]).float().clone()
    dense.load_state_dict(values, strict=False, assign=True)
    return trim(dense.eval(), plan)


@torch.no_grad()
def _expect(
    stage: Stage, policy: CogAct, tensors: Mapping[str, Tensor], got: Arrays
) -> dict[str, Tensor]:
    """What torch gives.

    Where it would keep other visual tokens than the graph did, the feature is of the graph's.
    """
    inputs = [tensors[name] for name in stage.inputs]
    result = stage.module(policy)(*inputs)
    outputs = dict(
        zip(stage.outputs, result if isinstance(result, tuple) else (result,), strict=True)
    )
    if "kept" in outputs:
        language = policy.language
        (visual, ids, last) = inputs
        assert isinstance(language, TrimmedDecoder)
        x = language.observe(visual, ids, last)[0]
        kept = language.among_seen(torch.from_numpy(got["kept"]))
        outputs["cognition"] = language.finish(x, kept, ids.shape[1], last)
    return outputs


def add_row(row: Comparison, key: str, expected: Tensor, got: np.ndarray) -> None:
    """Over the root mean square; of indices, the share that is in both."""
    if expected.is_floating_point():
        scale = float(expected.square().mean().sqrt()) or 1.0
        row.add(key, expected / scale, got / scale)
    else:
        row.add(key, np.ones(1), shared(expected.numpy(), got))
