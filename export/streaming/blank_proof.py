"""The proof for a policy of any family with `streaming` that torch cannot hold: a slice of it at
its true widths, exported by the same code.

As `slice_proof`, which is CogACT's: the slice's weights are the whole policy's, through the same
writer; then its graphs in ONNX Runtime against torch in float32, boundary by boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch
from torch import Tensor

from trimvla.export.compare import Comparison, report
from trimvla.export.graphs.stages import prompt_lengths, run_stage, stage_spec
from trimvla.export.parity import Parity
from trimvla.export.streaming.slice_proof import RUNS, add_row, row_of
from trimvla.export.streaming.weightless import blank_policy, blank_skeleton
from trimvla.export.streaming.writer import Journal, Writer, whole
from trimvla.export.verify import as_arrays, tolerances
from trimvla.policies.cogact.weights import Weights
from trimvla.policies.families import Family, family_of
from trimvla.policies.streaming import Slice
from trimvla.runtime.backends.runner import create
from trimvla.runtime.bundle.plan import Plan


class SliceWeights:
    """The weights of a slice, out of the whole policy's; of a table its first rows."""

    def __init__(self, weights: Weights, cut: Slice, shapes: Mapping[str, torch.Size]) -> None:
        """`shapes`: of the slice's weights by their names."""
        self._weights = weights
        self._cut = cut
        self._shapes = shapes

    @property
    def identity(self) -> dict[str, object]:
        """See `Weights`."""
        return self._weights.identity

    @contextmanager
    def lend(self, name: str) -> Iterator[Tensor]:
        """See `Weights`."""
        with self._weights.lend(self._cut.whole_name(name)) as lent:
            yield lent[: self._shapes[name][0]]


def prove_blank_slice(
    weights: Weights,
    cfg: Any,  # noqa: ANN401 - the family's
    plan: Plan,
    precision: str,
) -> Parity:
    """Export the slice in float32 and in the precision, and compare, as `slice_proof` does."""
    family = family_of(cfg)
    assert family.streaming is not None
    cut = family.streaming.slice_of(cfg, plan)
    dense = family.streaming.build_meta(cut.cfg)
    shapes = {name: weight.shape for name, weight in dense.state_dict().items()}
    lent = SliceWeights(weights, cut, shapes)
    precisions = dict.fromkeys(("float32", *(name for name in RUNS if name == precision)))
    tolerated = tolerances(family.stages(cut.cfg, cut.plan, False))
    rows: dict[str, Comparison] = {}
    samples = dict(torch_samples(family, cut, lent))
    for name in precisions:
        mine = {output: row_of(output, name, limit) for output, limit in tolerated.items()}
        compare(cut, lent, name, samples, mine)
        rows |= {row.group: row for row in mine.values()}
    beyond = "" if precision in precisions else f"; {precision} was not run on this CPU"
    scope = f"{cut.what}, through ONNX Runtime in {' and '.join(precisions)}{beyond}"
    return msgspec.structs.replace(
        report(rows),
        against=f"torch {torch.__version__}, float32",
        scope=f"{scope}; the whole graphs by onnx.checker",
    )


@torch.no_grad()
def torch_samples(
    family: Family, cut: Slice, weights: SliceWeights
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What torch makes of random inputs of every prompt's length: all tensors by name."""
    assert family.streaming is not None
    dense = family.streaming.build_meta(cut.cfg)
    values: dict[str, Tensor] = {}
    for name in dense.state_dict():
        with weights.lend(name) as lent:
            values[name] = lent.float().clone()
    dense.load_state_dict(values, strict=True, assign=True)
    policy = family.trim(dense.eval(), cut.plan)
    generator = torch.Generator().manual_seed(0)
    for bucket in prompt_lengths(cut.cfg):
        tensors = dict(family.example_inputs(cut.cfg, cut.plan, bucket, generator))
        for stage in family.stages(cut.cfg, cut.plan, False):
            given = {name: tensors[name] for name in stage.inputs}
            tensors.update(run_stage(stage, policy, given))
        yield f"bucket {bucket}", tensors


def compare(
    cut: Slice,
    weights: SliceWeights,
    precision: str,
    samples: Mapping[str, Mapping[str, Tensor]],
    rows: Mapping[str, Comparison],
) -> None:
    """Export the slice stage by stage and add every output's difference to its row."""
    cfg = cut.cfg
    blank = blank_policy(cfg, cut.plan, weights)
    with TemporaryDirectory(prefix="trimvla-slice-") as folder:
        for stage in family_of(cfg).stages(cfg, cut.plan, False):
            path = Path(folder) / f"{stage.name}.onnx"
            data = path.with_name(f"{path.name}.data")
            journal = Journal(path.with_suffix(".journal"), {})
            bones = blank_skeleton(blank, stage, data.name, precision)
            Writer(cut.plan, weights, journal, part=whole).write_stage(bones, path)
            journal.close()
            spec = stage_spec(cfg, stage, path.name, cut.plan)
            with closing(create("onnxruntime", path, spec)) as runner:
                for key, tensors in samples.items():
                    given = as_arrays({name: tensors[name] for name in stage.inputs})
                    got = runner.run(given)
                    for name in stage.outputs:
                        add_row(rows[name], key, tensors[name], got[name])
            data.unlink()
