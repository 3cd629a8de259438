"""Weights + plan -> bundle, streamed: memory of one weight, not of a policy; a killed export goes
on where it was.

Works in `NAME.partial` beside the target: a journal, the proof once it is made, and the bundle as
far as it has come, which takes the target's place at the end. What a bundle is stands in `bundle`;
this is another way to the same, with a slice of the policy proved where torch could not hold the
whole (`slice_proof`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from trimvla.export.bundle import manifest_of, swap
from trimvla.export.inputs import check_manifest, check_target, check_tokenizer, statistics_text
from trimvla.export.parity import Parity
from trimvla.export.streaming.blank_proof import prove_blank_slice
from trimvla.export.streaming.slice_proof import prove_slice
from trimvla.export.streaming.weightless import (
    Skeleton,
    blank_policy,
    blank_skeleton,
    skeleton,
    stand_in,
)
from trimvla.export.streaming.writer import Journal, Report, Writer, whole
from trimvla.policies.cogact.half import DTYPES
from trimvla.policies.cogact.weights import Weights
from trimvla.policies.families import family_of
from trimvla.policies.stage import Stage
from trimvla.policies.trimming.kept import part_of
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import InputsAndOutput, Manifest
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.errors import BundleError, ConfigError

# in the partial directory
JOURNAL = "journal.jsonl"
PROOF = "proof.json"
BUNDLE = "bundle"


@dataclass(frozen=True)
class Wanted:
    """What is to be exported: all but the weights.

    `precision` is a key of `half.DTYPES`, `tokenizer` the content of `tokenizer.json`; the rest as
    in `bundle.BundleRequest`. ConfigError or BundleError where one of them does not fit the policy.
    """

    cfg: Any
    """Of CogACT's family, or of one with `streaming`."""
    plan: Plan
    precision: str
    described: InputsAndOutput
    statistics: Mapping[str, Any]
    tokenizer: str

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ConfigError(
                f"expected one of {list(DTYPES)} for 'precision', got {self.precision!r}"
            )
        family = family_of(self.cfg)
        family.check_plan(self.plan, self.cfg)
        parts = sorted(self.plan.parts & {"channels", "expert_channels"})
        if family.streaming is not None and parts:
            words = f"expected a plan that keeps matrices whole, for a streamed '{family.name}'"
            raise ConfigError(f"{words}, got {parts}")
        assert self.described.prompt is not None  # what is streamed has a language model
        check_tokenizer(self.tokenizer, self.described.prompt, "tokenizer")
        statistics_text(self.statistics, self.described)
        check_manifest(self.manifest("unnamed", None))

    def manifest(self, name: str, created_utc: str | None) -> Manifest:
        """The manifest, without its table of files and its parity report."""
        return manifest_of(
            self.cfg,
            self.plan,
            self.described,
            name=name,
            precision=self.precision,
            created_utc=created_utc,
        )

    def request(self, weights: Weights) -> dict[str, object]:
        """What must be the same for a killed export to go on; time stamps do not matter.

        JSON-able.
        """
        return {
            "versions": [version(package) for package in ("trimvla", "torch", "onnxscript")],
            "policy": self.cfg.fingerprint,
            "plan": msgspec.to_builtins(msgspec.structs.replace(self.plan, provenance=None)),
            "precision": self.precision,
            "weights": weights.identity,
        }


def export_streamed(
    weights: Weights,
    wanted: Wanted,
    out: Path,
    *,
    created_utc: str | None = None,
    overwrite: bool = False,
    resume: bool = True,
    report: Report = lambda file, count: None,
) -> Manifest:
    """Export to a bundle without ever holding the policy.

    Args:
        weights: the dense policy's.
        wanted: what is made of them.
        out: the bundle; its last part becomes the bundle's name.
        created_utc: time stamp; now when left out.
        overwrite: replace an existing bundle.
        resume: go on with what a killed export of the same has left; else, or where it was another,
            begin anew.
        report: called with how many bytes of which file are written.

    Returns:
        The manifest. Its `parity` records what was compared: see `slice_proof.prove_slice`.

    Raises:
        ConfigError: the target exists, no such statistics, or another export to it is running.
        CheckpointError: a weight cannot be read.
        BundleError: the slice differs from torch by more than its tolerance. What is complete stays
            for the next try.
    """
    check_target(out, overwrite)
    with partial_directory(out, wanted.request(weights), resume) as (work, journal):
        directory = work / BUNDLE
        directory.mkdir(exist_ok=True)
        _write_texts(wanted, directory)
        parity = _proof(work / PROOF, weights, wanted)
        write_stages(wanted, directory, writer_for(wanted, weights, journal, report))
        described_now = wanted.manifest(out.name, created_utc)
        proved = msgspec.structs.replace(described_now, parity=msgspec.to_builtins(parity))
        bundles.write(directory, proved)
        manifest = bundles.load(
            directory, verify_hashes=False
        )  # they were taken a moment ago, from 10 GB
        swap(directory, out)
    shutil.rmtree(work)
    return manifest


@contextmanager
def partial_directory(
    out: Path, request: Mapping[str, Any], resume: bool
) -> Iterator[tuple[Path, Journal]]:
    """The directory beside `out` with what an export of the same request has left, or an empty one;
    and its journal.
    """
    work = out.with_name(f"{out.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    journal = Journal(work / JOURNAL, request)
    if journal.fresh or not (resume and journal.fits):
        journal.close()
        shutil.rmtree(work)
        work.mkdir()
        journal = Journal(work / JOURNAL, request)
    try:
        yield work, journal
    finally:
        journal.close()


def _write_texts(wanted: Wanted, directory: Path) -> None:
    (directory / bundles.TOKENIZER).write_text(wanted.tokenizer, encoding="utf-8")
    scales = statistics_text(wanted.statistics, wanted.described)
    (directory / bundles.STATISTICS).write_text(scales, encoding="utf-8")


def _proof(path: Path, weights: Weights, wanted: Wanted) -> Parity:
    """The slice's report, made before anything large is written, and once.

    Raises BundleError where it differs.
    """
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Parity)
    prove = prove_slice if family_of(wanted.cfg).streaming is None else prove_blank_slice
    result = prove(weights, wanted.cfg, wanted.plan, wanted.precision)
    if not result.ok:
        what = f"a slice of policy '{wanted.cfg.name}'"
        raise BundleError(f"{what} differs from torch: {result.complaint()}")
    result = msgspec.structs.replace(result, weights=weights.identity)
    path.with_suffix(".new").write_bytes(msgspec.json.encode(result))
    path.with_suffix(".new").rename(path)
    return result


def writer_for(wanted: Wanted, weights: Weights, journal: Journal, report: Report) -> Writer:
    """Writes the stages of a policy; a family with `streaming` has whole weights alone."""
    part = part_of if family_of(wanted.cfg).streaming is None else whole
    return Writer(wanted.plan, weights, journal, report, part)


def write_stages(wanted: Wanted, directory: Path, writer: Writer) -> None:
    """Every stage that is not there yet; a graph that is there is complete, and so are its
    weights.
    """
    bones = skeletons(wanted, writer.weights)
    for stage in family_of(wanted.cfg).stages(wanted.cfg, wanted.plan, False):
        path = directory / f"{stage.name}.onnx"
        data = path.with_name(f"{path.name}.data")
        if path.exists():
            writer.report(data.name, data.stat().st_size)
            continue
        writer.write_stage(bones(stage, data.name), path)


def skeletons(wanted: Wanted, weights: Weights) -> Callable[[Stage, str], Skeleton]:
    """(stage, name of its file of weights) -> its graph without weights, in the precision."""
    if family_of(wanted.cfg).streaming is None:
        policy = stand_in(wanted.cfg, wanted.plan, DTYPES[wanted.precision])
        return lambda stage, file: skeleton(policy, stage, file)
    blank = blank_policy(wanted.cfg, wanted.plan, weights)
    return lambda stage, file: blank_skeleton(blank, stage, file, wanted.precision)
