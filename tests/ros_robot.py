"""A robot of ROS 2 as far as its messages go: real CDR by rosbags, without ROS.

Its joints follow what its controllers are sent; it lists them in another order at every message.
`LocalNode` carries bytes between it and the bridge in one process, `SocketNode` between two.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rosbags.typesys import Stores, get_typestore

from trimvla.runtime.clock import NS_PER_S
from trimvla.runtime.image_codec import encode_image
from trimvla.runtime.ros.bridge import Bridge
from trimvla.runtime.ros.config import Ros2Config
from trimvla.runtime.ros.driver import Ros2Driver
from trimvla.runtime.ros.node import Node
from trimvla.runtime.ros.stamps import arrival

STORE = get_typestore(Stores.ROS2_JAZZY)
T = STORE.types
HZ = 100.0
FRAME_EVERY = 4  # joint states
Send = Callable[[str, bytes], None]


def cdr(kind: str, **fields: Any) -> bytes:
    return bytes(STORE.serialize_cdr(T[kind](**fields), kind))


def header(time_ns: int) -> object:
    seconds, rest = divmod(time_ns, NS_PER_S)
    stamp = T["builtin_interfaces/msg/Time"](sec=seconds, nanosec=rest)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id="")


def joint_state(names: list[str], values: list[float], time_ns: int) -> bytes:
    none = np.zeros(0)
    position = np.array(values, np.float64)
    return cdr(
        "sensor_msgs/msg/JointState",
        header=header(time_ns),
        name=names,
        position=position,
        velocity=none,
        effort=none,
    )


def image(pixels: np.ndarray, time_ns: int) -> bytes:
    height, width = pixels.shape[:2]
    return cdr(
        "sensor_msgs/msg/Image",
        header=header(time_ns),
        height=height,
        width=width,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(pixels[..., ::-1]).reshape(-1),
    )


def compressed(pixels: np.ndarray, time_ns: int) -> bytes:
    data = np.frombuffer(encode_image(pixels, "jpeg"), np.uint8)
    form = "bgr8; jpeg compressed bgr8"
    return cdr("sensor_msgs/msg/CompressedImage", header=header(time_ns), format=form, data=data)


def boolean(value: bool) -> bytes:
    return cdr("std_msgs/msg/Bool", data=value)


def text(value: str) -> bytes:
    return cdr("std_msgs/msg/String", data=value)


class RosRobot:
    """Two joints behind a trajectory controller, a gripper behind a forward one."""

    def __init__(self) -> None:
        self.joints = {"wheel": 9.0, "pan": 0.1, "lift": -0.2, "finger": 0.04}
        self.received: list[tuple[str, dict[str, float]]] = []
        self.moves: list[tuple[float, float]] = []
        """Targets of pan and lift."""
        self.pressed = False
        """Whether its emergency stop is."""
        self.silent = False
        """Whether it sends nothing."""
        self.late_ns = 0
        """How old everything is that it sends."""
        self.pixels = np.random.default_rng(3).integers(0, 256, (8, 12, 3), np.uint8)

    def take(self, topic: str, raw: bytes) -> None:
        """What a controller is sent."""
        if topic == "/arm/joint_trajectory":
            message = STORE.deserialize_cdr(raw, "trajectory_msgs/msg/JointTrajectory")
            (point,) = message.points  # pyright: ignore[reportAttributeAccessIssue]
            names = message.joint_names  # pyright: ignore[reportAttributeAccessIssue]
            values = dict(zip(names, point.positions.tolist(), strict=True))
            self.moves.append((values["pan"], values["lift"]))
        else:
            message = STORE.deserialize_cdr(raw, "std_msgs/msg/Float64MultiArray")
            (value,) = message.data.tolist()  # pyright: ignore[reportAttributeAccessIssue]
            values = {"finger": value}
        self.received.append((topic, values))
        self.joints.update(values)

    def send(self, send: Send, turn: int) -> None:
        """What its drivers publish."""
        if self.silent:
            return
        now = time.time_ns() - self.late_ns
        names = random.Random(turn).sample(list(self.joints), len(self.joints))
        values = [self.joints[name] for name in names]
        send("/joint_states", joint_state(names, values, now))
        if turn % FRAME_EVERY == 0:
            send("/camera/image_raw", image(self.pixels, now))


class LocalNode:
    """Between the bridge and a robot in this process."""

    failure = ""

    def __init__(self, bridge: Bridge, robot: RosRobot) -> None:
        self._robot = robot
        self._bridge = bridge
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(1 / HZ):
            self._robot.send(self.receive, turn)
            turn += 1

    def receive(self, topic: str, raw: bytes) -> None:
        self._bridge.receive(topic, raw, arrival(time.time_ns))

    def publish(self, topic: str, raw: bytes) -> None:
        self._robot.take(topic, raw)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class LocalDriver(Ros2Driver):
    """The driver, with a robot in this process in ROS's place."""

    def __init__(self, config: Ros2Config) -> None:
        super().__init__(config)
        self.robot = RosRobot()
        self.node: LocalNode | None = None

    def open_node(self, bridge: Bridge) -> Node:
        self.node = LocalNode(bridge, self.robot)
        return self.node


class SocketNode:
    """Between the bridge and a robot in another process: topic and bytes over ZeroMQ."""

    failure = ""

    def __init__(self, bridge: Bridge, folder: Path) -> None:
        self._bridge = bridge
        context = zmq.Context.instance()
        self._out = context.socket(zmq.PUSH)
        self._out.setsockopt(zmq.LINGER, 0)
        self._out.connect(f"ipc://{folder}/commands")
        self._in = context.socket(zmq.SUB)
        self._in.subscribe(b"")
        self._in.connect(f"ipc://{folder}/topics")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._in.poll(50):
                topic, raw = self._in.recv_multipart()
                self._bridge.receive(topic.decode(), raw, arrival(time.time_ns))
        self._in.close(0)

    def publish(self, topic: str, raw: bytes) -> None:
        self._out.send_multipart([topic.encode(), raw])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._out.close(0)


class SocketDriver(Ros2Driver):
    """As `kind` of a section whose working directory has a robot's sockets."""

    def __init__(self, config: Ros2Config) -> None:
        super().__init__(config)

    def open_node(self, bridge: Bridge) -> Node:
        return SocketNode(bridge, Path.cwd())


@contextmanager
def serving(folder: Path) -> Iterator[RosRobot]:
    """A robot whose topics are sockets in a folder, for a `SocketNode`."""
    robot = RosRobot()
    stop = threading.Event()
    thread = threading.Thread(target=_serve, args=(robot, folder, stop))
    thread.start()
    try:
        yield robot
    finally:
        stop.set()
        thread.join()


def _serve(robot: RosRobot, folder: Path, stop: threading.Event) -> None:
    context = zmq.Context.instance()
    with context.socket(zmq.PUB) as topics, context.socket(zmq.PULL) as commands:
        topics.bind(f"ipc://{folder}/topics")
        commands.bind(f"ipc://{folder}/commands")
        rng = np.random.default_rng(0)
        turn = 0

        def send(topic: str, raw: bytes) -> None:
            topics.send_multipart([topic.encode(), raw])

        while not stop.wait(1 / HZ):
            robot.pixels = rng.integers(0, 256, robot.pixels.shape, np.uint8)
            robot.send(send, turn)
            if turn % 5 == 0:
                send("/estop", boolean(robot.pressed))
                send("/instruction", text("pick up the red cube"))
            while commands.poll(0):
                name, raw = commands.recv_multipart()
                robot.take(name.decode(), raw)
            turn += 1
