"""`trimvla verify`: does a bundle compute what torch computes, or this torch policy what the public
code computed?
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from trimvla.export.parity import Parity
from trimvla.launch.console import progress_bar
from trimvla.launch.exporting.parity_table import as_table
from trimvla.launch.options import Options
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Args(Options):
    """Compare the same computation in two places, number by number; exit status 0 only where all of
    it agrees.
    """

    bundle: Positional[str | None] = None
    """A bundle's path or a shipped bundle's name: ONNX Runtime against torch, on the same inputs
    and noise.
    """

    selector: str | None = None
    """The token selector of somebody's own that the bundle's plan names, module:attribute; it is
    imported only where it is named here (docs/guides/own-token-selector.md).
    """

    source: Path | None = None
    """With a bundle that has no weights beside it: what it was exported from, a run folder, a
    checkpoint's folder as its makers publish it (LeRobot's, openpi's, Dexbotic's, CogACT's), or a
    shipped bundle's name.
    """

    checkpoint: str | None = None
    """With --source: name of the .pt file in its `checkpoints/`; needed where there are several."""

    patch: Path | None = None
    """With a bundle that was exported with a patch which no longer lies beside it: that file."""

    reference: Path | None = None
    """A directory of arrays that the public CogACT code gave (docs/reference/reference-format.md):
    torch against these arrays."""

    through: Literal["torch", "onnx"] = "torch"
    """With --reference: run the stages in torch, or export them and run the graphs."""

    every_plan: bool = False
    """With --through onnx: export every reading of the tokens at every count, not each reading once
    (minutes more).
    """


def run(args: Args) -> Parity:
    """Verify one of the two; a table for people."""
    if (args.bundle is None) == (args.reference is None):
        raise ConfigError("expected either a bundle or --reference DIR")
    if args.bundle is None and args.source is not None:
        raise ConfigError(f"expected --source with a bundle only, got {args.source}")
    if args.bundle is None and args.patch is not None:
        raise ConfigError(f"expected --patch with a bundle only, got {args.patch}")
    if args.source is None and args.checkpoint is not None:
        raise ConfigError(f"expected --checkpoint with --source only, got {args.checkpoint!r}")
    console = args.console()
    with progress_bar() as progress:
        progress.add_task("comparing", total=None)
        if args.reference is None:
            result = _bundle(str(args.bundle), args)
        else:
            result = _reference(args.reference, args)
    console.print(as_table(result))
    console.print("all agree" if result.ok else f"{len(result.failed)} differ")
    for failure in result.failed:
        key = "" if failure.key is None else f", {failure.key}"
        console.print(f"  failed: {failure.group}{key}: {failure.reason}")
    return result


def _reference(directory: Path, args: Args) -> Parity:
    from trimvla.export.reference.checks import verify_reference

    return verify_reference(directory, through=args.through, every_plan=args.every_plan)


def _bundle(name: str, args: Args) -> Parity:
    from trimvla.export.verify import verify_bundle
    from trimvla.launch.exporting.named_plan import use_named_selector
    from trimvla.launch.exporting.policy_source import policy_of_bundle

    directory = bundles.resolve(name)
    use_named_selector(args.selector, bundles.load(directory))
    policy = policy_of_bundle(directory, args.source, args.checkpoint)
    return verify_bundle(name, policy, patch=args.patch)
