"""The parts of a recovery, from its options: recipe, request, frames, and the patch's record.

Knows where a policy and its frames come from; trains nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trimvla.export.bundle import BundleRequest, export_policy
from trimvla.launch.exporting.calibration import find_calibration
from trimvla.launch.exporting.played_frames import PlayedEnv
from trimvla.launch.exporting.policy_source import TOKENIZER, open_source
from trimvla.launch.recovery.gather import Wanted, frames_from_env
from trimvla.launch.recovery.options import Args
from trimvla.launch.recovery.session import Session
from trimvla.launch.recovery.work import Recovered
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.families import family_of
from trimvla.policies.recovery.distil import Recipe
from trimvla.policies.recovery.frames import HELD_OUT, OWN, Frames, frames_from_calibration
from trimvla.policies.trimming.planner import time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest_types import Recovery
from trimvla.runtime.bundle.plan import Plan, plan_digest
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError

METHOD = "distillation of the cognition feature"
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def recipe_of(args: Args) -> Recipe:
    """What shapes the result; where the minutes decide, the steps are not known yet."""
    return Recipe(
        steps=args.steps or 1,
        parts=args.part_names,
        pictures=args.pictures,
        learning_rate=args.rate,
        seed=args.seed,
    )


def request_of(args: Args, dense: CogAct, plan: Plan, digest: str) -> dict[str, object]:
    """What must be the same for a killed recovery to go on; JSON-able."""
    return {
        "policy": dense.cfg.fingerprint,
        "weights": digest,
        "plan": plan_digest(plan),
        "source": source_of(args),
        "frames": [args.frames, args.own, args.held_out, args.sentences],
        "recipe": [list(args.part_names), args.pictures, args.rate, args.seed],
        "steps": args.steps,
        "minutes": args.within,
        "dtype": args.dtype,
        "threads": torch.get_num_threads() if args.threads == 0 else args.threads,
        "torch": torch.__version__,
    }


def source_of(args: Args) -> str:
    """Where the frames come from, for the record."""
    if args.env is not None:
        return args.env
    assert args.calibration is not None
    return args.calibration.name


def gathered(args: Args, source: Path, dense: CogAct, plan: Plan, kept: Session) -> Frames:
    """The frames that are asked for. Raises ConfigError where there are none."""
    tokenizer = source / TOKENIZER
    if args.env is None:
        data = find_calibration(
            args.calibration,
            source,
            dense.cfg,
            tokenizer,
            frames=args.frames + args.held_out,
            seed=args.seed,
        )
        return frames_from_calibration(data, args.held_out, args.sentences, args.seed)
    is_bundle = (source / bundles.MANIFEST).exists()
    options = args.env_options([str(source)] if is_bundle else [])
    return frames_from_env(
        PlayedEnv(args.env, options, source),
        dense.cfg,
        load_tokenizer(tokenizer, error=ConfigError),
        Wanted(
            args.frames, round(args.own * args.frames), args.held_out, args.sentences, args.seed
        ),
        student=lambda: trimmed_bundle(args, source, dense, plan, kept.folder / "student"),
        folder=kept.folder / "shards",
    )


def trimmed_bundle(args: Args, source: Path, dense: CogAct, plan: Plan, out: Path) -> Path:
    """The trimmed policy as a bundle, so that it can play; a killed run may have made it before."""
    if (out / bundles.MANIFEST).is_file():  # written in one move
        return out
    opened = open_source(source, preset=args.preset, checkpoint=args.checkpoint)
    export_policy(
        BundleRequest(
            policy=dense,
            described=family_of(dense.cfg).describe(opened, plan),
            plan=plan,
            statistics=opened.table,
            tokenizer=opened.tokenizer,
            out=out,
        )
    )
    return out


def record_of(
    args: Args, dense: CogAct, plan: Plan, digest: str, *, frames: Frames, found: Recovered
) -> Recovery:
    """What the patch records of itself."""
    held = len(frames.rows(HELD_OUT))
    progressed = found.progressed
    return Recovery(
        policy=dense.cfg.fingerprint,
        weights=digest,
        plan=plan_digest(plan),
        method=METHOD,
        parts=args.part_names,
        source=source_of(args),
        frames=len(frames.images) - held,
        own=len(frames.rows(OWN)),
        held_out=held,
        sentences=frames.last.shape[1],
        steps=progressed.step,
        pictures=args.pictures,
        learning_rate=args.rate,
        seed=args.seed,
        loss_before=progressed.loss_before,
        loss_after=found.loss_after,
        p90_before=progressed.p90_before,
        p90_after=found.p90_after,
        minutes=round(progressed.seconds / 60, 3),
        created_utc=time_stamp(),
    )
