"""The parts of a recovery, from its options: recipe, request, frames, and the patch's record.

Knows where a policy and its frames come from; trains nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from trimvla.export.bundle import BundleRequest, export_policy
from trimvla.launch.exporting.policy_source import TOKENIZER, open_source
from trimvla.launch.frames.calibration import find_calibration
from trimvla.launch.frames.played import PlayedEnv
from trimvla.launch.recovery.gather import Wanted, frames_from_env
from trimvla.launch.recovery.options import Args
from trimvla.launch.recovery.session import Losses, Session
from trimvla.launch.recovery.work import Recovered
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.families import family_of
from trimvla.policies.recovery.distil import HEAD, Recipe
from trimvla.policies.recovery.frames import HELD_OUT, OWN, Frames, frames_from_calibration
from trimvla.policies.trimming.planner import time_stamp
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest_types import HeadRecovery, Recovery
from trimvla.runtime.bundle.plan import DISTILLED, Plan, plan_digest
from trimvla.runtime.bundle.tokenizer_file import load_tokenizer
from trimvla.runtime.errors import ConfigError

METHODS = {
    False: "distillation of the cognition feature",
    True: "distillation of the cognition feature and of guidance into the head",
}
"""By whether the head was trained."""
HEAD_LOSS = "steps by effect"
"""What a recovery that goes on must have been begun with."""
HEAD_METHOD = "distillation of guidance into the head"
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def recipe_of(args: Args) -> Recipe:
    """What shapes the result; where the minutes decide, the steps are not known yet."""
    return Recipe(
        steps=args.steps or 1,
        parts=args.part_names,
        pictures=args.pictures,
        learning_rate=args.rate,
        head_rate=args.head_rate,
        noises=args.noises,
        seed=args.seed,
    )


def check_head(args: Args, plan: Plan) -> None:
    """ConfigError unless the head is trained where the plan's guidance is distilled, and nowhere
    else: without it the policy could not be exported.
    """
    distilled = plan.guidance == DISTILLED
    if distilled and HEAD not in args.part_names:
        raise ConfigError(
            f"{args.plan}: expected head among --parts, for the plan's 'guidance' is"
            f" '{DISTILLED}', got {args.parts!r}"
        )
    if HEAD in args.part_names and not distilled:
        got = "none" if plan.guidance is None else f"{plan.guidance:g}"
        raise ConfigError(
            f"{args.plan}: expected '{DISTILLED}' as the plan's 'guidance' (`trimvla trim"
            f" --guidance {DISTILLED}`) where the head is trained, got {got}"
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
        "head": [HEAD_LOSS, args.head_rate, args.noises] if HEAD in args.part_names else None,
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
    """The trimmed policy as a bundle, so that it can play; a killed run may have made it before.

    Guidance that will be distilled is still computed: the recovered policy gets into states like
    these, not into those of a head without guidance.
    """
    if (out / bundles.MANIFEST).is_file():  # written in one move
        return out
    if plan.guidance == DISTILLED:
        plan = msgspec.structs.replace(plan, guidance=None)
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
    before = progressed.before
    return Recovery(
        policy=dense.cfg.fingerprint,
        weights=digest,
        plan=plan_digest(plan),
        method=HEAD_METHOD if args.part_names == (HEAD,) else METHODS[HEAD in args.part_names],
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
        loss_before=before.mean,
        loss_after=found.after.mean,
        p90_before=before.p90,
        p90_after=found.after.p90,
        minutes=round(progressed.seconds / 60, 3),
        created_utc=time_stamp(),
        head=head_record_of(args, before, found.after),
    )


def head_record_of(args: Args, before: Losses, after: Losses) -> HeadRecovery | None:
    """What the patch records of the head; None where it was not trained."""
    if before.head_mean is None or before.head_p90 is None:
        return None
    assert after.head_mean is not None
    assert after.head_p90 is not None
    return HeadRecovery(
        noises=args.noises,
        learning_rate=args.head_rate,
        loss_before=before.head_mean,
        loss_after=after.head_mean,
        p90_before=before.head_p90,
        p90_after=after.head_p90,
    )
