"""The frames of a search: those that are named, or of fresh demonstrations, kept for the next run.

Knows where frames come from; measures nothing.
"""

from __future__ import annotations

from pathlib import Path

from trimvla.launch.console import Progress
from trimvla.launch.frames.calibration import find_calibration
from trimvla.launch.tuning.options import TuneArgs
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.trimming.calibrate import Calibration, load_calibration
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError


def frames_of(args: TuneArgs, dense: Path, policy: CogAct, progress: Progress) -> Calibration:
    """Calibration frames of the policy; fresh ones are simulated once."""
    cfg = policy.cfg
    kept = args.out / f"frames-{args.frames}-{args.draw}.npz"
    if args.calibration is None and kept.exists():
        return load_calibration(kept, cfg)
    task = progress.add_task("calibration frames", total=1)
    data = find_calibration(
        args.calibration,
        dense,
        cfg,
        dense / bundles.TOKENIZER,
        frames=args.frames,
        seed=args.draw,
    )
    if len(data.last) < 2:
        raise ConfigError(f"expected at least 2 calibration frames, got {len(data.last)}")
    if args.calibration is None:
        data.save(kept)
    progress.update(task, completed=1)
    return data
