"""One inference after the other: judges the newest image, runs the policy, publishes the chunk or
why there is none.

Knows sockets, ages and a policy that infers; not what the network is. The noise's seed is made of
the configured seed, the episode and the frame, and travels with the chunk: the same image gives
the same actions again.
"""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from trimvla.runtime.backends.failures import FailureStreak
from trimvla.runtime.bundle.action_meaning import ActionMeaning
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Refusal, Task
from trimvla.runtime.bus.sockets import Input, Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import color
from trimvla.runtime.bus.traffic import explain
from trimvla.runtime.clock import NS_PER_S, monotonic_ns, to_ns
from trimvla.runtime.errors import CameraError, FrozenError, SkewError, StaleError, TrimvlaError
from trimvla.runtime.inference.frozen_frames import FrozenFrameDetector, Stills
from trimvla.runtime.inference.observation import JoinedObservation, join
from trimvla.runtime.inference.policy_config import PolicyConfig
from trimvla.runtime.inference.policy_like import PolicyLike
from trimvla.runtime.inference.robot_inputs import ONE_CAMERA, RobotInputs
from trimvla.runtime.inference.scheduler import InferenceScheduler

log = logging.getLogger(__name__)
WAIT_S = 0.1  # for messages, so that `stop` is seen
Kind = Literal["stale", "skewed", "frozen", "other"]
KINDS: dict[type[TrimvlaError], Kind] = {
    FrozenError: "frozen",
    SkewError: "skewed",
    StaleError: "stale",
}
JITTER = 0.8  # of the period that `max_hz` asks for: cameras are not exact


class PolicyLoop:
    """One inference after the other, over real sockets."""

    def __init__(
        self,
        policy: PolicyLike | InferenceScheduler,
        inputs: Subscriber,
        chunks: Publisher,
        telemetry: Telemetry,
        *,
        meaning: ActionMeaning,
        config: PolicyConfig,
        statistics_key: str = "",
        refusals: Publisher | None = None,
        size: tuple[int, int] = (0, 0),
        robot: RobotInputs = ONE_CAMERA,
    ) -> None:
        """`meaning` and `statistics_key`: of the policy's actions, which every chunk names.

        `refusals` records what was not acted on, and why.
        `size`: height and width of the images that the policy was trained with; a smaller one is
        acted on, after a warning.
        `robot`: which of the robot's cameras and numbers the policy sees; by default its only
        camera is `config.camera`.
        """
        self._robot_inputs = robot
        self._budget = robot.budget(config.budget)
        self._scheduler = (
            policy
            if isinstance(policy, InferenceScheduler)
            else InferenceScheduler({config.bundle: policy}, config.thought)
        )
        self._meaning = meaning
        self._statistics_key = statistics_key
        self._config = config
        self._inputs = inputs
        self._chunks = chunks
        self._telemetry = telemetry
        self._refusals = refusals
        self._size = size
        self._small: set[str] = set()
        """Cameras for which that was published."""
        self._camera = config.looked_through[0]
        self._color = color(self._camera)
        self._watches = {
            camera: FrozenFrameDetector(self._budget.frozen_alike) for camera in config.all_cameras
        }
        self._gap_ns = to_ns(JITTER / config.max_hz)
        self.seen_ns = -self._gap_ns
        """Capture of the last image that was looked at."""
        self._looked_at: Frame | None = None
        self._failures = FailureStreak()
        self._began_ns = monotonic_ns()

    def step(self) -> bool:
        """Wait for news; if there is a new image, act on it.

        Returns whether a chunk was published.

        An image is refused, with its reason in the report, if `join` or the policy refuses it.

        Raises CameraError if a task is under way and a camera has never given an image,
        BackendUnavailableError if the policy can no longer act.
        """
        self._inputs.update(WAIT_S)
        frame = self._frame(self._camera)
        task = _alive_task(self._inputs["task"])
        self._telemetry.counters["frames_missed"] = self._inputs[self._color].missed
        self._telemetry.values["camera_hz"] = round(self._inputs[self._color].hz, 2)
        self._check_cameras(task)
        if frame is None:
            return False
        stills = self._look()
        if frame is self._looked_at or (
            frame.age_known and 0 <= frame.time_ns - self.seen_ns < self._gap_ns
        ):
            self._note_silence(frame, task)
            return False
        self._looked_at = frame
        self.seen_ns = frame.time_ns if frame.age_known else self.seen_ns
        self._check_sizes()
        return self._act(frame, task, stills)

    def _frame(self, camera: str) -> Frame | None:
        message = self._inputs[color(camera)].message
        return message if isinstance(message, Frame) else None

    def _look(self) -> dict[str, Stills]:
        """For how long every camera's images have shown nothing new."""
        frames = {camera: self._frame(camera) for camera in self._watches}
        timed = {camera: frame for camera, frame in frames.items() if frame and frame.age_known}
        return {
            camera: self._watches[camera].look(frame, self._robot())
            for camera, frame in timed.items()
        }

    def _robot(self) -> JointState | None:
        message = self._inputs["robot/state"].message
        return message if isinstance(message, JointState) else None

    def _observe(
        self, task: Task | None, stills: dict[str, Stills] | None = None
    ) -> JoinedObservation:
        frames = {camera: self._frame(camera) for camera in self._watches}
        return join(monotonic_ns(), frames, task, self._robot(), self._budget, stills=stills)

    def _act(self, frame: Frame, task: Task | None, stills: dict[str, Stills]) -> bool:
        """Judge the image; think; publish."""
        arrived_ns = self._inputs[self._color].received_ns
        if frame.age_known:
            self._telemetry.time_ns("travel", arrived_ns - frame.time_ns)
        self._telemetry.time_ns("pickup", monotonic_ns() - arrived_ns)
        try:
            observation = self._observe(task, stills)
            self._telemetry.time_ns("observation_age", monotonic_ns() - observation.time_ns)
            chunk = self._think(observation, frame)
            self._scheduler.published(msgspec.structs.replace(chunk, sequence=self._chunks.sent))
            self._chunks.send(chunk)
        except TrimvlaError as error:
            self._refuse(error, task)
            return False
        self._failures.end()
        self._telemetry.count("frames_used")
        self._telemetry.state = "running"
        self._telemetry.reason = ""
        return True

    def _note_silence(self, frame: Frame, task: Task | None) -> None:
        """A camera that fell silent gives nothing to judge: publish once that its last image is too
        old by now.
        """
        overdue = monotonic_ns() - frame.time_ns > to_ns(self._budget.of_camera(frame.camera))
        if overdue and self._telemetry.state == "running":
            try:
                self._observe(task)
            except TrimvlaError as error:
                self._refuse(error, task)

    def _think(self, joined: JoinedObservation, frame: Frame) -> ActionChunk:
        task = joined.task
        seen = self._robot_inputs.seen(joined, self._config)
        seed = (self._config.seed, task.episode, frame.sequence)
        thought = self._scheduler.run(task, seen.observation, seen.time_ns, seed, self._telemetry)
        result = thought.result
        produced_ns = monotonic_ns()
        self._telemetry.time_all("inference", result.milliseconds)
        self._telemetry.time_ns("photon_to_chunk", produced_ns - seen.time_ns)
        return ActionChunk(
            time_ns=seen.time_ns,
            episode=task.episode,
            actions=tuple(map(tuple, result.actions.tolist())),
            control_hz=self._meaning.hz,
            kinds=self._meaning.kinds,
            names=self._meaning.names,
            units=self._meaning.units,
            statistics_key=self._statistics_key,
            valid_rows=min(self._config.valid_rows, len(result.actions)),
            produced_ns=produced_ns,
            frame_sequence=frame.sequence,
            seed=seed,
            instruction=task.instruction,
            frames=seen.frames,
            state=seen.state,
            **thought.about,
        )

    def _refuse(self, error: TrimvlaError, task: Task | None) -> None:
        """No chunk, and the reason: the control loop holds once its last chunk has expired."""
        if task is None or not task.active:
            self._telemetry.state = "idle"
            self._telemetry.reason = explain(str(error), self._inputs)
            self._failures.end()
            return
        self._scheduler.forget()
        kind = _kind(error)
        self._telemetry.count("frames_stale" if isinstance(error, StaleError) else "refused")
        self._telemetry.count(f"refused_{kind}")
        known = self._telemetry.state == "refusing" and self._telemetry.reason.startswith(
            str(error)
        )
        news = self._telemetry.state != "refusing" or (kind == "other" and not known)
        if news and kind != "stale":
            log.warning("refused: %s", error)
        reason = explain(str(error), self._inputs)
        self._telemetry.state = "refusing"
        self._telemetry.reason = reason
        since_ns = error.since_ns if isinstance(error, FrozenError) else None
        refusal = Refusal(
            time_ns=monotonic_ns(),
            episode=task.episode,
            kind=kind,
            reason=reason,
            since_ns=since_ns,
        )
        if self._refusals is not None:
            self._refusals.send(refusal)
        self._failures.add(error, refusal.time_ns)

    def _check_sizes(self) -> None:
        """Log once a camera whose images are smaller than what the policy looks at."""
        least_height, least_width = self._size
        frames = [self._frame(camera) for camera in self._config.looked_through]
        for frame in (frame for frame in frames if frame and frame.camera not in self._small):
            height, width = frame.image.shape[:2]
            if height >= least_height and width >= least_width:
                continue
            log.warning(
                "camera '%s': images of %d x %d are smaller than the policy's, %d x %d: what they"
                " lack is missing",
                *(frame.camera, width, height, least_width, least_height),
            )
            self._small.add(frame.camera)

    def _check_cameras(self, task: Task | None) -> None:
        """Each must have given a first image in time. A process that was started again may be
        younger than its task, and its cameras than both.
        """
        missing = [camera for camera in self._watches if self._frame(camera) is None]
        if not missing or task is None or not task.active:
            return
        waited_s = (monotonic_ns() - max(task.started_ns, self._began_ns)) / NS_PER_S
        if waited_s > self._config.camera_timeout_s:
            start = (
                "the task's start"
                if task.started_ns > self._began_ns
                else "the process's start, in a task"
            )
            within = f"within {self._config.camera_timeout_s:g} s of {start}"
            raise CameraError(
                f"camera '{missing[0]}': expected a first image on '{color(missing[0])}'"
                f" {within}, got none"
            )


def _kind(error: TrimvlaError) -> Kind:
    kinds: list[Kind] = [kind for cause, kind in KINDS.items() if isinstance(error, cause)]
    return kinds[0] if kinds else "other"


def _alive_task(source: Input) -> Task | None:
    return source.message if source.alive and isinstance(source.message, Task) else None
