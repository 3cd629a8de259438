"""The WidowX 250 driver and its bridge, over a real socket; `widowx_envs` is stood in for."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from trimvla.runtime.bus.messages import Frame
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.drivers import widowx_bridge
from trimvla.runtime.drivers.contract import check_driver
from trimvla.runtime.drivers.widowx import WidowX, WidowXConfig
from trimvla.runtime.drivers.widowx_bridge import Bridge, serve
from trimvla.runtime.errors import ConfigError, DriverError

STEP = [0.01, 0.0, -0.02, 0.0, 0.1, 0.0, 1.0]


class Client:
    """`WidowXClient`'s methods, with an arm that follows at once."""

    def __init__(self) -> None:
        self.state = np.array([0.3, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0])
        self.image = np.zeros((12, 16, 3), np.uint8)
        self.status = 1
        self.observes = True

    def step_action(self, action, blocking: bool = False) -> int:
        assert action.shape == (7,) and not blocking
        self.state[:6] += action[:6]
        self.state[6] = action[6]
        return self.status

    def move(self, pose, duration: float = 1.0, blocking: bool = False) -> int:
        self.state[:6] = pose
        return self.status

    def get_observation(self):
        return {"full_image": self.image, "state": self.state} if self.observes else None


@contextmanager
def bridged(answer) -> Iterator[str]:
    """A socket behind which `answer(raw) -> parts` stands."""

    class Answers(Bridge):
        def __init__(self) -> None: ...

        def answer(self, raw: bytes) -> list[bytes]:
            return answer(raw)

    socket = zmq.Context.instance().socket(zmq.REP)
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(Answers(), socket, stop))
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join()
        socket.close()


def test_the_arm_keeps_a_drivers_contract(tmp_path: Path) -> None:
    client = Client()
    with bridged(Bridge(client).answer) as address:
        config = WidowXConfig(
            address=address, rest=(0.3, 0.0, 0.2), timeout_s=20.0, speed=0.5, watchdog_s=0.2
        )
        assert len(check_driver(WidowX(config), config, tmp_path)) >= 6
    assert client.state[:3] == pytest.approx([0.3, 0.0, 0.2], abs=1e-6)
    assert client.state[6] == 1.0, "what it holds it keeps"


def test_its_image_is_a_camera(tmp_path: Path) -> None:
    client = Client()
    client.image[0, 0] = (1, 2, 3)
    with bridged(Bridge(client).answer) as address:
        config = WidowXConfig(address=address, timeout_s=20.0)
        driver = WidowX(config)
        driver.connect(tmp_path)
        try:
            with Subscriber(tmp_path, [topic("front/color")]) as frames:
                position: object = ()
                gripper = 0.0
                while not frames["front/color"].updated:
                    position, gripper = driver.read() or ((), 0.0)
                    frames.update(0.05)
                frame = frames["front/color"].message
        finally:
            driver.disconnect()
    assert isinstance(frame, Frame) and frame.image[0, 0].tolist() == [1, 2, 3]
    assert (position, gripper) == ([0.3, 0.0, 0.15, 0.0, 0.0, 0.0], 1.0)


def request(**fields) -> bytes:
    return json.dumps({"version": 1, **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x80\x04K\x01.", "Decode"),  # a pickle
        (b"[]", "version 1"),
        (b'{"version": 2}', "version 1"),
        (request(request="reboot"), "observe, step or move"),
        (request(request="step", action=STEP[:6]), "7 finite numbers"),
        (request(request="step", action=[float("nan"), *STEP[1:]]), "7 finite numbers"),
        (request(request="step", action=[0.2, *STEP[1:]]), "at most 0.05, got 0.2"),
        (b" " * 5000, "at most 4096 bytes"),
    ],
)
def test_the_bridge_refuses(raw: bytes, words: str) -> None:
    client = Client()
    before = client.state.copy()
    answer = json.loads(Bridge(client).answer(raw)[0])
    assert answer["ok"] is False and words in answer["error"]
    assert (client.state == before).all()


def test_the_bridge_steps_and_moves() -> None:
    client = Client()
    assert json.loads(Bridge(client).answer(request(request="step", action=STEP))[0])["ok"] is True
    assert client.state[:3] == pytest.approx([0.31, 0.0, 0.13])
    pose = [0.2, 0.0, 0.2, 0.0, 0.0, 0.0]
    assert json.loads(Bridge(client).answer(request(request="move", pose=pose))[0])["ok"] is True
    client.status = 3
    refused = json.loads(Bridge(client).answer(request(request="step", action=STEP))[0])
    assert refused == {"ok": False, "error": "status 3 of widowx_envs"}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"\x80\x04K\x01."], "expected JSON"),
        ([b"3"], "expected an object"),
        ([b'{"ok": true, "state": [1, 2]}'], "a state of 7 numbers"),
        (
            [b'{"ok": true, "state": [0,0,0,0,0,0,1], "dtype": "uint8", "shape": [9,9,3]}', b"ab"],
            "an image of uint8",
        ),
        ([b'{"ok": false, "error": "no observation"}'], "refused observe"),
    ],
)
def test_an_answer_that_is_wrong(parts: list[bytes], words: str, tmp_path: Path) -> None:
    with bridged(lambda raw: parts) as address:
        driver = WidowX(WidowXConfig(address=address, timeout_s=20.0))
        try:
            with pytest.raises(DriverError, match=words):
                driver.connect(tmp_path)
                driver.read()
        finally:
            driver.disconnect()


def test_nobody_there(tmp_path: Path) -> None:
    driver = WidowX(WidowXConfig(address="tcp://127.0.0.1:9", timeout_s=0.1))
    with pytest.raises(DriverError, match=r"within 0\.1 s, got none"):
        driver.connect(tmp_path)
    driver.disconnect()


@pytest.mark.parametrize("settings", [{"rest": (1.0,)}, {"speed": 0.0}, {"timeout_s": -1.0}])
def test_settings_that_cannot_be(settings: dict) -> None:
    with pytest.raises(ConfigError):
        WidowXConfig(**settings)


def test_the_bridge_needs_nothing_of_ours_and_runs_on_python_3_8() -> None:
    text = Path(widowx_bridge.__file__).read_text()
    ast.parse(text, feature_version=(3, 8))
    assert "import trimvla" not in text and "from trimvla" not in text
    assert "import pickle" not in text
