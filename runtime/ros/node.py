"""The ROS 2 node: serialized messages from topics to the bridge, and from it to topics.

All of rclpy that trimvla uses. Messages stay bytes on this side: rclpy converts none of them. Knows
rclpy, whose version is the ROS distribution's; imports it when a node is opened.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Protocol

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.foreign_thread import ForeignThread
from trimvla.runtime.own_objects import blame
from trimvla.runtime.ros.bridge import Bridge, Channel
from trimvla.runtime.ros.config import Ros2Config
from trimvla.runtime.ros.stamps import arrival

JOIN_S = 2.0


class Node(Protocol):
    """What carries messages between ROS topics and the bridge."""

    failure: str
    """Why it ended; empty while it runs."""

    def publish(self, topic: str, raw: bytes) -> None:
        """Send a message of one of the bridge's outputs."""
        ...

    def close(self) -> None:
        """Leave ROS; nothing is received after that."""
        ...


class RosNode:
    """A node of rclpy, spun by a thread of its own."""

    def __init__(self, config: Ros2Config, bridge: Bridge) -> None:
        """Join ROS. Raises ConfigError where rclpy or a type's package is not there."""
        rclpy = load("rclpy")
        # ROS's own handlers would shut it down before the arm is at its safe pose
        no_handlers = load("rclpy.signals").SignalHandlerOptions.NO
        rclpy.init(args=[], signal_handler_options=no_handlers)
        self._rclpy = rclpy
        self._bridge = bridge
        self.failure = ""
        sim_time = load("rclpy.parameter").Parameter("use_sim_time", value=config.sim_time)
        self._node = load("rclpy.node").Node(config.node, parameter_overrides=[sim_time])
        self._publishers = {
            each.topic: self._node.create_publisher(_type(each), each.topic, _quality(each))
            for each in bridge.outputs
        }
        for each in bridge.inputs:
            self._node.create_subscription(
                _type(each), each.topic, self._receiver(each.topic), _quality(each), raw=True
            )
        self._executor = load("rclpy.executors").SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = ForeignThread(self._spin, "ros")
        self._thread.start()

    def _receiver(self, topic: str) -> Any:  # noqa: ANN401 - rclpy asks how many parameters it has
        clock = self._node.get_clock()

        def receive(raw: bytes) -> None:
            self._bridge.receive(topic, raw, arrival(lambda: clock.now().nanoseconds))

        return receive

    def _spin(self) -> None:
        try:
            self._executor.spin()
            self.failure = "its executor was shut down"
        except Exception as error:  # whatever a middleware raises
            self.failure = blame(error)

    def publish(self, topic: str, raw: bytes) -> None:
        """See `Node`."""
        self._publishers[topic].publish(raw)

    def close(self) -> None:
        """See `Node`."""
        self._executor.shutdown(timeout_sec=JOIN_S)
        self._thread.join(JOIN_S)
        self._node.destroy_node()
        self._rclpy.try_shutdown()


def load(name: str) -> Any:  # noqa: ANN401 - ROS's own
    """A Python module of ROS. Raises ConfigError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library that lacks its own raises other errors than ImportError
        version = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"expected ROS 2's '{name}' in this process's environment: source"
            " /opt/ros/DISTRO/setup.bash before the system is started, and give `python` the Python"
            f" that ROS was built for (Humble 3.10, Jazzy 3.12); this is {version}:"
            f" {type(error).__name__}: {error}"
        ) from error


def _type(channel: Channel) -> Any:  # noqa: ANN401 - ROS's own
    """`sensor_msgs/msg/Image` -> its class."""
    package, _, name = channel.type.partition("/msg/")
    return getattr(load(f"{package}.msg"), name)


def _quality(channel: Channel) -> Any:  # noqa: ANN401 - ROS's own
    qos = load("rclpy.qos")
    reliable = channel.quality == "reliable"
    policy = qos.ReliabilityPolicy
    return qos.QoSProfile(
        depth=channel.depth,
        history=qos.HistoryPolicy.KEEP_LAST,
        reliability=policy.RELIABLE if reliable else policy.BEST_EFFORT,
        durability=qos.DurabilityPolicy.VOLATILE,
    )
