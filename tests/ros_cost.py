"""What the ROS 2 mappings cost: processor time of one message, 640 x 480 images.

python -m tests.ros_cost
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tests import ros_robot
from trimvla.runtime.ros import cdr
from trimvla.runtime.ros.bridge import Bridge
from trimvla.runtime.ros.config import ControllerConfig, Ros2Config, RosCameraConfig
from trimvla.runtime.ros.images import read_compressed, read_image
from trimvla.runtime.ros.joints import positions_of
from trimvla.runtime.ros.stamps import arrival

ROUNDS = 300
JOINTS = tuple(f"joint_{place}" for place in range(7))


def cost_ms(call: Callable[[], object]) -> float:
    """Processor time of one call [ms], the mean of many."""
    for _ in range(10):
        call()
    begun = time.process_time()
    for _ in range(ROUNDS):
        call()
    return (time.process_time() - begun) / ROUNDS * 1e3


def picture() -> np.ndarray:
    """As of a camera: ramps with the noise of a sensor."""
    rows, columns = np.mgrid[:480, :640]
    clean = np.stack([rows / 2, columns / 3, (rows + columns) / 5], axis=-1)
    noise = np.random.default_rng(0).normal(0, 4, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


def main() -> None:
    """Print a table."""
    raw = ros_robot.image(picture(), time.time_ns())
    packed = ros_robot.compressed(picture(), time.time_ns())
    state = ros_robot.joint_state(list(JOINTS), [0.1] * 7, time.time_ns())
    config = Ros2Config(
        joints=JOINTS,
        controllers=(ControllerConfig("/arm", JOINTS),),
        cameras=(RosCameraConfig("a", "/a"), RosCameraConfig("b", "/b", compressed=True)),
    )
    with tempfile.TemporaryDirectory() as folder:
        bridge = Bridge(config, Path(folder))

        def receive(topic: str, make: Callable[[int], bytes]) -> Callable[[], object]:
            content = make(time.time_ns())
            return lambda: bridge.receive(topic, content, arrival(time.time_ns))

        for _ in range(6):  # their clocks are found
            bridge.receive("/a", ros_robot.image(picture(), time.time_ns()), arrival(time.time_ns))
            bridge.receive(
                "/b", ros_robot.compressed(picture(), time.time_ns()), arrival(time.time_ns)
            )
        raw_image = partial(ros_robot.image, picture())
        packed_image = partial(ros_robot.compressed, picture())
        rows = {
            "Image bgr8 -> RGB": lambda: read_image(cdr.decode(raw, cdr.IMAGE)),
            "... and onto the bus": receive("/a", raw_image),
            "CompressedImage (JPEG) -> RGB": lambda: read_compressed(
                cdr.decode(packed, cdr.COMPRESSED)
            ),
            "... and onto the bus ": receive("/b", packed_image),
            "JointState, 7 joints": lambda: positions_of(cdr.decode(state, cdr.JOINTS), JOINTS),
            "a command, 7 joints": lambda: bridge.commands((0.1,) * 7),
        }
        print(f"{len(raw)} bytes raw, {len(packed)} packed")
        for name, call in rows.items():
            cost = cost_ms(call)
            print(f"{name:32s} {cost:7.3f} ms   at 30 Hz {3 * cost:5.1f} % of a core")
        print(bridge.figures())
        bridge.close()


if __name__ == "__main__":
    main()
