"""A robot behind ROS 2 topics as a driver: `kind = "ros2"`.

Runs in an environment where ROS's Python packages can be imported, with our base install and
`rosbags` beside them. Knows the driver's contract; what comes and goes is the bridge's, and ROS the
node's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimvla.runtime.bundle.description import Description
from trimvla.runtime.drivers.driver import Driver, DriverConfig, Reading
from trimvla.runtime.errors import DriverError
from trimvla.runtime.ros.bridge import Bridge
from trimvla.runtime.ros.config import Ros2Config
from trimvla.runtime.ros.node import Node, RosNode

LOOK_S = 0.02


class Ros2Driver(Driver):
    """One robot."""

    def __init__(self, config: Ros2Config) -> None:
        self._config = config
        self._bridge: Bridge | None = None
        self._node: Node | None = None
        self._taken_ns: int | None = None
        self._last: Sequence[float] = ()
        """The last command."""

    @classmethod
    def describe(cls, config: DriverConfig) -> Description | None:
        """See `Driver`: all of it is configured."""
        return config.description() if isinstance(config, Ros2Config) else None

    def open_node(self, bridge: Bridge) -> Node:
        """What carries the bridge's messages."""
        return RosNode(self._config, bridge)

    def connect(self, run_dir: Path) -> None:
        """See `Driver`.

        Raises:
            ConfigError: no ROS 2 in this environment.
            DriverError: no joint state comes in time, or its stamps are not ROS time.
        """
        self._bridge = Bridge(self._config, run_dir)
        self._node = self.open_node(self._bridge)
        end = time.monotonic() + self._config.start_timeout_s
        while self._bridge.state is None:
            self._check_node()
            if time.monotonic() > end:
                raise DriverError(self._silence(self._bridge))
            time.sleep(LOOK_S)

    def _silence(self, bridge: Bridge) -> str:
        name = self._config.joint_states
        limit = f"within {self._config.start_timeout_s:g} s"
        got = bridge.problem(name) or "none"
        return f"expected a joint state on ROS topic '{name}' {limit}, got: {got}"

    def _check_node(self) -> None:
        """Raise DriverError where ROS has ended."""
        if self._node is not None and self._node.failure:
            raise DriverError(f"the ROS node ended: {self._node.failure}")

    @property
    def _connected(self) -> tuple[Bridge, Node]:
        if self._bridge is None or self._node is None:
            raise DriverError("expected a robot that is connected, got none")
        return self._bridge, self._node

    def read(self) -> Reading | None:
        """See `Driver`: the newest joint state; None where it is too old."""
        bridge, _ = self._connected
        self._check_node()
        bridge.publish_task()
        state = bridge.state
        if state is None:
            return None
        self._taken_ns = state.time_ns
        return bridge.reading(state)

    def taken_ns(self) -> int | None:
        """See `Driver`: by its stamp."""
        return self._taken_ns

    def write(self, action: Sequence[float]) -> None:
        """See `Driver`."""
        bridge, node = self._connected
        self._last = tuple(action)
        for name, raw in bridge.commands(action):
            node.publish(name, raw)

    def hold(self) -> None:
        """See `Driver`: the last targets once more, and velocities of 0; nothing before the first
        command. A trajectory ends in its last point and stays there.
        """
        if self._last and self._bridge is not None:
            self.write(self._bridge.still(self._last))

    def safe_pose(self) -> Sequence[float] | None:
        """See `Driver`: `rest`."""
        rest = self._config.rest
        return tuple(rest.get(name, float("nan")) for name in self._config.joints) if rest else None

    def figures(self) -> Mapping[str, float]:
        """Images, and messages that could not be used."""
        return {} if self._bridge is None else self._bridge.figures()

    def disconnect(self) -> None:
        """See `Driver`. The controllers keep their last target."""
        if self._node is not None:
            self._node.close()
        if self._bridge is not None:
            self._bridge.close()
