"""`trimvla inspect`: one policy call, opened up: kept tokens over the image, layers run, steps
reused, stage times.

The call comes from a recording or from an image. Knows what a manifest's plan leaves out; drawing
is `call_picture`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.figures import call_picture, call_rerun
from trimvla.launch.figures.call_picture import CallStory
from trimvla.launch.inspection.look import Look, load_image, pick
from trimvla.launch.inspection.results import ComputedOf, InspectResult, KeptOf, RunOf
from trimvla.launch.inspection.story import story_of
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.replay.recorded_policy import choose_bundles, open_rungs
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import one_image
from trimvla.runtime.record.recording import Recording


@dataclass(frozen=True)
class Args(Options):
    """Show what one policy call did: which visual tokens, layers and sampler steps it used, and
    where its time went.
    """

    what: Positional[str]
    """A recording, or a bundle (a path or a shipped bundle's name) together with --image and
    --instruction.
    """

    bundle: str | None = None
    """For a recording: with which bundle; by default the recorded one, if it is a shipped
    bundle.
    """

    recorded_paths: bool = False
    """For a recording: run the bundle from the place that the recording names; for recordings of
    your own.
    """

    call: int = 0
    """For a recording: which call, from 0 on; negative from the end."""

    image: Path | None = None
    """For a bundle: the image."""

    instruction: str | None = None
    """For a bundle: what to do."""

    seed: int = 0
    """For a bundle: of the noise."""

    backend: str | None = None
    """What runs it; the recorded one, or onnxruntime. Also module:attribute of your own
    (docs/guides/own-backend.md)."""

    out: Path = Path("out/inspect.png")
    """Where the picture goes."""

    rerun: Path | None = None
    """Also write a Rerun recording, usually *.rrd."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a picture of no known kind."""
        call_picture.check_suffix(self.out)

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return Output("--out", self.out), Output("--rerun", self.rerun)


def run(args: Args) -> InspectResult:
    """Make the call, describe it, draw it."""
    policy, look = prepare(args)
    known = None if look.call is None else look.call.known
    policy.infer(look.observation, seed=look.seed, known=known)  # the first call is slower
    result = policy.infer(look.observation, seed=look.seed, known=known)
    story = story_of(policy, look, result)
    call_picture.write(args.out, story)
    if args.rerun is not None:
        call_rerun.write(args.rerun, story, result.actions)
    answer = result_of(policy, look, story, args)
    policy.close()
    console = args.console()
    for line in call_picture.describe(story):
        console.print(line)
    return answer


def prepare(args: Args) -> tuple[Policy, Look]:
    """The policy, and what it looks at. Raises ConfigError, RecordingError or BundleError."""
    if Path(args.what).is_file():
        recording = Recording(Path(args.what))
        call = pick(recording, args.call)
        names = choose_bundles(recording, args.bundle, args.recorded_paths)
        rungs = open_rungs(recording, names, args.backend, None, None)
        policy = rungs.pop(call.chunk.rung, None) or rungs.pop(next(iter(rungs)))
        for other in rungs.values():
            other.close()
        return policy, Look(call.observation, call.chunk.seed, call)
    bundle = bundles.resolve(args.what)
    if args.image is None or args.instruction is None:
        raise ConfigError("expected --image and --instruction, or a recording to take them from")
    look = Look(one_image(load_image(args.image), args.instruction), (args.seed,))
    return Policy.load(bundle, backend=args.backend or "onnxruntime", threads=1), look


def result_of(policy: Policy, look: Look, story: CallStory, args: Args) -> InspectResult:
    """The story as a result."""
    chunk = None if look.call is None else look.call.chunk
    return InspectResult(
        ok=True,
        bundle=policy.manifest.name,
        instruction=look.observation.instruction,
        seed=list(look.seed),
        chunk=None if chunk is None else chunk.sequence,
        frame=None if chunk is None else chunk.frame_sequence,
        same_as_recorded=story.same,
        tokens=KeptOf(kept=story.kept.tolist(), of=story.tokens),
        layers=RunOf(run=list(story.layers), of=story.all_layers),
        steps=ComputedOf(
            computed=list(story.recompute),
            of=story.steps,
            guidance=policy.manifest.plan.guidance,
        ),
        milliseconds={name: round(value, 3) for name, value in story.milliseconds.items()},
        runs=policy.describe(),
        picture=args.out,
        rerun=args.rerun,
        patch=policy.manifest.patch,
    )
