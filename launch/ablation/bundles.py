"""A bundle for every row of an ablation, made where it is not there yet.

Knows the dense bundle with its checkpoint, calibration frames and plans; plays and times nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch

from trimvla.export.bundle import BundleRequest, described_by, export_policy
from trimvla.export.verify import checkpoint_beside
from trimvla.launch.ablation.options import AblateArgs
from trimvla.launch.ablation.rows import DENSE, Row, request
from trimvla.launch.console import Progress
from trimvla.launch.frames.calibration import simulate
from trimvla.launch.frames.played import PlayedEnv, calibration_from_env
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.families import parse_config
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.policies.trimming.planner import make_plan, time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_statistics import read_table
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.workers import spread


@dataclass(frozen=True)
class Origin:
    """What every row is made from: the dense bundle and calibration data; and where the rows'
    bundles go.
    """

    dense: Path
    data: Calibration
    work: Path


def weights_digest(directory: Path) -> str:
    """sha256 of the checkpoint beside a bundle."""
    return hashlib.sha256(
        directory.with_name(f"{directory.name}.safetensors").read_bytes()
    ).hexdigest()


def calibrate(args: AblateArgs, directory: Path, progress: Progress) -> Calibration:
    """Frames of fresh demonstrations of what is played."""
    task = progress.add_task("calibration frames", total=1)
    cfg = parse_config(bundles.load(directory).policy)
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


def make_bundles(args: AblateArgs, origin: Origin, progress: Progress) -> dict[str, Path]:
    """Row -> bundle, in the order of the table."""
    task = progress.add_task("exports", total=len(args.chosen))
    made: dict[str, Path] = {}
    for name, path in spread(partial(make_some, args, origin), args.chosen, args.workers):
        made[name] = path
        progress.advance(task)
    return {row.name: made[row.name] for row in args.chosen}


def make_some(args: AblateArgs, origin: Origin, rows: Sequence[Row]) -> Iterator[tuple[str, Path]]:
    """Some rows' bundles, in a process of its own."""
    torch.set_num_threads(1)
    policy = checkpoint_beside(origin.dense)
    assert isinstance(policy, CogAct)  # what families that calibrate build
    for row in rows:
        yield (
            row.name,
            origin.dense if row.name == DENSE else make_bundle(args, row, origin, policy),
        )


def make_bundle(args: AblateArgs, row: Row, origin: Origin, policy: CogAct) -> Path:
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
