"""The options of `trimvla eval`: who plays what, where and how late. Plays nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from trimvla.launch.evaluation.env_args import EnvArgs
from trimvla.launch.outputs import Output
from trimvla.runtime.errors import ConfigError
from trimvla.sim.actor import EXPERT

if TYPE_CHECKING:
    pass

Variant = Literal["default", "lighting", "texture", "camera", "distractors", "all"]
Chunks = Literal["latest", "ensemble", "blend", "rtc"]
CANDIDATE = "candidate"
REFERENCE = "reference"


@dataclass(frozen=True)
class Args(EnvArgs):
    """Play episodes with a bundle, or with several on the same seeds."""

    bundle: Positional[str] = "tabletop"
    """A bundle's path or a shipped bundle's name."""

    against: str | None = None
    """The reference: a bundle that plays the same episodes, to be compared with."""

    rungs: tuple[str, ...] = ()
    """More bundles that play the same episodes: a ladder whose top is BUNDLE; each is compared with
    it.
    """

    policy: Literal["bundle", "expert"] = "bundle"
    """`expert`: the scripted expert of the environment plays instead of a bundle."""

    margin: float = 0.05
    """How much lower than the reference's the success rate may be; 0.05 is five points."""

    data: Path | None = None
    """Instead of playing: a LeRobot data set (v3.0 or v2.1, docs/guides/data-sets.md). At every
    --execute-th row the bundle sees what was recorded, and its actions are compared with the
    recorded ones.
    """

    views: tuple[str, ...] = ()
    """With --data: POLICY=SET, once for each camera that the data set calls otherwise."""

    env: str = "tabletop"
    """The environment: tabletop, simpler:TASK (ManiSkill 3), simpler_env:TASK (the original
    package), gymnasium:ID (any that is registered), or module:attribute, a function of your own
    that returns one (docs/guides/own-environment.md).
    """

    episodes: int | None = None
    """How many (default: all official ones, else 200); the interval is about +-6 points at 200."""

    seed: int | None = None
    """Seed of the first episode; the others follow. Where there are official episodes, a seed means
    others than these; without official ones it is 1000. Demonstrations begin at 1000000. The
    original SimplerEnv draws by it, for WidowX, moves and drawers its official states again.
    """

    swap_instruction: bool = False
    """Give an instruction about another object (tabletop); success is still judged by the original
    goal.
    """

    variant: Variant = "default"
    """What the pictures look like (tabletop)."""

    execute: int | None = None
    """Steps of a chunk that are executed before the next look, at least; with 1 the last chunks
    vote on every action. Default: the environment's official protocol, else 2.
    """

    votes: int | None = None
    """Chunks that vote. Default: the environment's official protocol, else 2."""

    latency: str | None = None
    """Charge thinking to the simulated clock: milliseconds, lognormal:MEDIAN,SIGMA, a trace
    (.json), measured (before, here), wall (as it comes), orin or thor (roofline of CogACT-Base
    under the bundle's plan; orin:0.2 reaches a fifth of it). Several, separated by commas, make a
    curve. Left out, the simulator waits.
    """

    chunks: Chunks | None = None
    """How one chunk follows another where there is a latency (docs/concepts/chunks.md): the newest
    decides, the last ones vote, the old one fades into the new, or the newest one was guided by the
    old (rtc: the bundles need the stage `action_guided`). Default: they vote with --execute 1, else
    the newest decides."""

    valid_rows: int = 8
    """Rows of a chunk that may be executed where there is a latency; as on the robot."""

    out: Path | None = None
    """A folder for outcomes (one line an episode), table, picture and films. A killed run goes on
    from there; so does one with more episodes.
    """

    film: str | None = None
    """Which episodes to film, counted from 0: 0,3.

    They are played once more, and must end as they did.
    """

    backend: str = "onnxruntime"
    """What executes the stages: onnxruntime, openvino, tensorrt, tensorrt-rtx, or module:attribute
    of your own (docs/guides/own-backend.md)."""

    provider: str | None = None
    """What executes inside the backend, such as CUDAExecutionProvider of ONNX Runtime (default: the
    CPU).
    """

    threads: int = 1
    """Threads of an operator; 0 takes all cores."""

    workers: int | None = None
    """Processes that play, each with policies of its own (default: one a core); the outcomes are
    the same.
    """

    ray: str | None = None
    """Play on a Ray cluster: its address, or auto for the one that this machine belongs to."""

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that is out of range."""
        low = [
            name
            for name in ("episodes", "execute", "votes", "workers")
            if (getattr(self, name) or 1) < 1
        ]
        low += [
            name for name in ("episodes", "execute", "votes", "workers") if getattr(self, name) == 0
        ]
        wrong = (
            [f"expected at least 1 for {', '.join(f'--{name}' for name in dict.fromkeys(low))}"]
            if low
            else []
        )
        if not 0 < self.margin < 1:
            wrong.append(f"expected 0 < --margin < 1 (0.05 is five points), got {self.margin}")
        if self.env != "tabletop" and (self.swap_instruction or self.variant != "default"):
            wrong.append(
                f"expected no --swap-instruction and no --variant for {self.env!r}: they are the"
                " tabletop's"
            )
        if self.chunks is not None and self.latency is None:
            wrong.append(
                f"expected --latency for --chunks {self.chunks}: a simulator that waits has no late"
                " chunk"
            )
        wrong += list(self._data_problems())
        if self.film is not None and self.out is None:
            wrong.append("expected --out for --film: the folder of the films")
        if self.film is not None and not all(word.isdigit() for word in self.film.split(",")):
            wrong.append(f"expected numbers as in 0,3 for --film, got {self.film!r}")
        if wrong:
            raise ConfigError("; ".join(wrong))

    def _data_problems(self) -> Iterator[str]:
        """What does not go together with --data, or needs it."""
        if self.data is None:
            if self.views:
                yield "expected --data for --views: cameras of a data set"
            return
        if not all(word.count("=") == 1 and all(word.split("=")) for word in self.views):
            yield f"expected POLICY=SET for --views, got {list(self.views)}"
        playing = ("against", "rungs", "latency", "chunks", "film", "ray", "workers", "votes")
        given = [name for name in playing if getattr(self, name)]
        if self.policy != "bundle" or self.env != "tabletop":
            given.append("policy" if self.policy != "bundle" else "env")
        if given:
            options = ", ".join(f"--{name}" for name in given)
            yield f"expected no {options} with --data: nothing is played there"

    @property
    def view_names(self) -> dict[str, str]:
        """The policy's name of a camera -> the data set's."""
        return {name: there for name, _, there in (word.partition("=") for word in self.views)}

    def outputs(self) -> tuple[Output, ...]:
        """See `Options.outputs`."""
        return (Output("--out", self.out, folder=True),)

    @property
    def task(self) -> str:
        """As `make_task` knows it."""
        words = [self.variant] * (self.variant != "default") + ["swapped"] * self.swap_instruction
        return ":".join([self.env, "+".join(words)]) if words else self.env

    @property
    def names(self) -> dict[str, str]:
        """Role -> bundle, in the order in which they play: the reference first, then the candidate,
        then rungs.
        """
        first = {} if self.against is None else {REFERENCE: self.against}
        return {
            **first,
            CANDIDATE: EXPERT if self.policy == EXPERT else self.bundle,
            **{name: name for name in self.rungs},
        }
