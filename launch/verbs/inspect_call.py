"""`trimvla inspect`: one policy call, opened up: kept tokens over the image, layers run, steps
reused, stage times.

The call comes from a recording or from an image. Knows what a manifest's plan leaves out; drawing
is `call_picture`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from trimvla.launch.figures import call_picture, call_rerun
from trimvla.launch.figures.call_picture import CallStory
from trimvla.launch.options import Options
from trimvla.launch.outputs import Output
from trimvla.launch.result import VerbResult
from trimvla.launch.system.recorded_policy import choose_bundles, open_rungs
from trimvla.policies.families import image_tokens, parse_config
from trimvla.policies.trimming.places import seen_places
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import PLAIN, Manifest
from trimvla.runtime.errors import ConfigError, ImageError, RecordingError
from trimvla.runtime.images import read_image
from trimvla.runtime.inference.policy import Policy, PolicyResult
from trimvla.runtime.preprocess.observation import Observation, one_image
from trimvla.runtime.record.recording import Recording
from trimvla.runtime.record.replay import Call, Calls, compare


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


@dataclass(frozen=True, eq=False)
class Look:
    """What is inspected: an observation, the noise's seed; the recorded call if there is one."""

    observation: Observation
    seed: tuple[int, ...]
    call: Call | None = None


class KeptOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which visual tokens were kept."""

    kept: list[int]
    """Their places in raster order."""
    of: int
    """How many there were."""


class RunOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which language layers ran."""

    run: list[int]
    """Their numbers in the dense policy."""
    of: int
    """How many the dense policy has."""


class ComputedOf(msgspec.Struct, frozen=True, kw_only=True):
    """At which sampler steps the head's blocks ran."""

    computed: list[int]
    """The steps' numbers."""
    of: int
    """How many steps there were."""


class InspectResult(VerbResult, frozen=True, kw_only=True):
    """One policy call, opened up."""

    bundle: str
    """The bundle's name."""
    instruction: str
    """What the robot was to do."""
    seed: list[int]
    """Of the noise."""
    chunk: int | None
    """The recorded chunk's sequence number; none without a recording."""
    frame: int | None
    """The recorded image's sequence number; none without a recording."""
    same_as_recorded: bool | None
    """Whether the actions are those that were recorded; none without a recording."""
    tokens: KeptOf
    """Visual tokens."""
    layers: RunOf
    """Language layers."""
    steps: ComputedOf
    """Sampler steps."""
    milliseconds: dict[str, float]
    """Part of the call -> what it took [ms]."""
    runs: dict[str, dict[str, str]]
    """Stage -> what ran it."""
    picture: Path
    """The picture that was drawn."""
    rerun: Path | None = None
    """The Rerun recording, with --rerun."""


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


def pick(recording: Recording, index: int) -> Call:
    """One call of a recording by its place; RecordingError where there is none."""
    calls = Calls(recording)
    place = index if index >= 0 else calls.count + index
    for number, call in enumerate(calls):
        if number == place:
            return call
    why = "".join(f"; {count}: {reason}" for reason, count in calls.left_out.items())
    raise RecordingError(f"{recording.path}: expected call {index}, got {calls.count} calls{why}")


def load_image(path: Path) -> NDArray[np.uint8]:
    """uint8[h, w, 3] RGB. Raises ConfigError."""
    try:
        return read_image(path)
    except ImageError as error:
        raise ConfigError(str(error)) from None


def story_of(policy: Policy, look: Look, result: PolicyResult) -> CallStory:
    """What ran, by the manifest's plan, and how long, as the call measured."""
    manifest = policy.manifest
    seen, patches = visual_tokens(manifest)
    layers, steps = depth(manifest)
    recompute = range(steps) if manifest.plan.recompute is None else manifest.plan.recompute
    return CallStory(
        images=look.observation.images,
        instruction=look.observation.instruction,
        bundle=manifest.name,
        grid=math.isqrt(patches // len(manifest.images.cameras)),
        kept=np.array(seen) if result.kept is None else result.kept,
        layers=tuple(range(layers)) if manifest.plan.layers is None else manifest.plan.layers,
        all_layers=layers,
        recompute=tuple(recompute),
        steps=steps,
        milliseconds=result.milliseconds,
        same=None if look.call is None else compare(look.call, result.actions) is None,
    )


def visual_tokens(manifest: Manifest) -> tuple[tuple[int, ...], int]:
    """Raster indices, over all cameras, of the visual tokens that the encoders give, and how many
    there are before patches leave.
    """
    plan = manifest.plan
    if plan.vision is None or plan.vision.patches is None:
        first = manifest.stages[manifest.modes[PLAIN][0]]
        rows = int(first.tensor("visual").shape[-2])
        return tuple(range(rows)), rows
    cfg = parse_config(manifest.policy)
    count = image_tokens(cfg, plan)
    cameras = len(manifest.images.cameras)
    seen = seen_places(plan, count)
    return tuple(n * count + place for n in range(cameras) for place in seen), cameras * count


def depth(manifest: Manifest) -> tuple[int, int]:
    """Language layers of the dense policy, and sampler steps; 0 where the manifest has none."""
    policy: dict[str, Any] = manifest.policy
    flow = 0 if manifest.flow is None else manifest.flow.steps
    steps = manifest.plan.steps or policy.get("diffusion", {}).get("inference_steps", flow)
    text = policy.get("language") or policy.get("text") or {}
    return text.get("layers", 0), steps


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
        steps=ComputedOf(computed=list(story.recompute), of=story.steps),
        milliseconds={name: round(value, 3) for name, value in story.milliseconds.items()},
        runs=policy.describe(),
        picture=args.out,
        rerun=args.rerun,
    )
