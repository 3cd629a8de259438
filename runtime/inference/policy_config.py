"""The configuration of the process `policy`: which bundles, which cameras, how old inputs may be.

Knows limits of its own fields; reads no bundle and opens no socket.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trimvla.runtime.bus.topics import CAMERA_NAME
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.ladder import LadderConfig
from trimvla.runtime.inference.motion_phase import PhaseConfig
from trimvla.runtime.inference.observation import AgeBudget
from trimvla.runtime.inference.scheduler import SchedulerConfig


@dataclass(frozen=True)
class PolicyConfig:
    """What runs, on what it looks, and how much of its chunks may be executed."""

    bundle: str = "tabletop"
    """A bundle's path, or a shipped bundle's name."""
    rungs: tuple[str, ...] = ()
    """Instead: the bundles of a quality ladder, the best first. All are loaded at the start."""
    backend: str = "onnxruntime"
    """What executes the stages; also module:attribute of your own (docs/guides/own-backend.md)."""
    provider: str | None = None
    threads: int = 1
    """Of the backend; 0 takes all cores, also those of the control loop."""
    engines: str | None = None
    """The folder of built engines, for a backend that runs them; by default see
    `engine_folders`.
    """
    camera: str = "front"
    """The robot's camera that a policy with one camera looks through."""
    cameras: dict[str, str] = field(default_factory=dict)
    """For a policy with several: by its own name for each of its cameras, the robot's camera. The
    images of the first
    one start the calls. `camera` means nothing then."""
    more_cameras: tuple[str, ...] = ()
    """Cameras that the policy does not look through and that must be as fresh as its own."""
    outside_cameras: tuple[str, ...] = ()
    """Those of all these that another program publishes into the run directory: no section and no
    network file names them."""
    valid_rows: int = 8
    """Rows of a chunk that may be executed; what is further ahead is a guess."""
    max_hz: float = 10.0
    """About this many calls per second at most: images that follow the last one sooner are passed
    over, so that a chunk is always made of an image that has just come.
    """
    seed: int = 0
    budget: AgeBudget = field(default_factory=AgeBudget)
    rtc: RtcConfig = field(default_factory=RtcConfig)
    """Real-time chunking."""
    ladder: LadderConfig = field(default_factory=LadderConfig)
    """When to change the rung, where there are `rungs`."""
    phase: PhaseConfig = field(default_factory=PhaseConfig)
    """What motion is fine, where that decides about the rung (`ladder.coarse`)."""
    ready_timeout_s: float = 120.0
    """What loading and warming up may take; a bundle that takes longer counts as one that hangs."""
    camera_timeout_s: float = 10.0
    """Without a first image this long into a task, and since the process was ready, a camera
    counts as not started.
    """

    def __post_init__(self) -> None:
        if self.valid_rows < 1 or self.seed < 0:
            raise ConfigError(
                f"expected 'valid_rows' >= 1 and 'seed' >= 0, got {self.valid_rows} and {self.seed}"
            )
        for name in ("max_hz", "camera_timeout_s", "ready_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"expected a number above 0, got {getattr(self, name)} for '{name}'"
                )
        if wrong := [name for name in self.all_cameras if not CAMERA_NAME.fullmatch(name)]:
            raise ConfigError(f"expected names of the robot's cameras, got {wrong}")
        if unknown := [name for name in self.budget.cameras if name not in self.all_cameras]:
            known = list(self.all_cameras)
            raise ConfigError(f"expected some of {known} for 'budget.cameras', got {unknown}")
        if unknown := [name for name in self.outside_cameras if name not in self.all_cameras]:
            known = list(self.all_cameras)
            raise ConfigError(f"expected some of {known} for 'outside_cameras', got {unknown}")
        if len(set(self.rungs)) != len(self.rungs):
            raise ConfigError(f"expected bundles that differ for 'rungs', got {list(self.rungs)}")

    @property
    def looked_through(self) -> tuple[str, ...]:
        """The robot's cameras that the policy looks through; the first one's images start the
        calls.
        """
        return tuple(dict.fromkeys(self.cameras.values())) or (self.camera,)

    @property
    def all_cameras(self) -> tuple[str, ...]:
        """Those, and the ones that must be as fresh."""
        return tuple(dict.fromkeys((*self.looked_through, *self.more_cameras)))

    @property
    def thought(self) -> SchedulerConfig:
        """How each call's rung and guidance are chosen."""
        return SchedulerConfig(self.rtc, self.ladder, self.phase)
