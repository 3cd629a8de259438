"""Keys over real sockets: who has none, the wrong one, or one that is not on the list gets nothing,
and is logged.
"""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from tests.tiny_bundle import write_bundle
from trimvla.launch import cli
from trimvla.launch.system.networking import read_network
from trimvla.launch.system.what_runs import owners
from trimvla.runtime.bus import curve
from trimvla.runtime.bus.curve import Keys, check_plain
from trimvla.runtime.bus.messages import ActionChunk, Frame, JointState, Task
from trimvla.runtime.bus.network import Network, RemoteTopic, install, to_local_clock
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import decode, encode
from trimvla.runtime.clock import monotonic_ns, wall_ns
from trimvla.runtime.errors import ConfigError, WireError
from trimvla.runtime.inference import process as policy_process
from trimvla.runtime.inference.policy_config import PolicyConfig

STATE = topic("robot/state")


class Hosts:
    """Hosts with keys and run directories of their own, on one network that consists of one
    topic.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"

    def add(
        self,
        name: str,
        *,
        knows: tuple[str, ...] = (),
        publisher: str = "robot",
        keyed: bool = True,
    ) -> Path:
        """A host's run directory. It trusts those whom it knows."""
        home = self.root / name
        run_dir = self.root / f"{name}-run"
        run_dir.mkdir(mode=0o700)
        curve.create(home, name)
        for other in knows:
            shutil.copy(self.root / other / f"{other}.key", home)
        topics = {STATE.name: RemoteTopic(self.endpoint, publisher)}
        install(Network(topics, str(home) if keyed else ""), run_dir)
        return run_dir

    def trust(self, host: str, other: str) -> None:
        shutil.copy(self.root / other / f"{other}.key", self.root / host)


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def state() -> JointState:
    return JointState(time_ns=monotonic_ns(), position=(0.5,), gripper=1.0)


def speak(publisher: Publisher, listeners: list[Subscriber], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        publisher.send(state())
        for listener in listeners:
            listener.update(0.01)


def speak_until_heard(publisher: Publisher, listener: Subscriber) -> JointState:
    end = time.monotonic() + 20
    while listener[STATE.name].message is None:
        assert time.monotonic() < end, "nothing arrived"
        speak(publisher, [listener], 0.05)
    message = listener[STATE.name].message
    assert isinstance(message, JointState)
    return message


def test_strangers_get_nothing_and_the_log_says_who_they_were(hosts, caplog):
    caplog.set_level(logging.WARNING)
    robot = hosts.add("robot")
    friend = hosts.add("friend", knows=("robot",))
    hosts.trust("robot", "friend")
    unlisted = hosts.add("unlisted", knows=("robot",))
    # takes the robot for somebody else
    misled = hosts.add("misled", knows=("friend",), publisher="friend")
    keyless = hosts.add("keyless", keyed=False)
    with ExitStack() as stack:
        out = stack.enter_context(Publisher(robot, STATE))
        known, *strangers = (
            stack.enter_context(Subscriber(run_dir, [STATE]))
            for run_dir in (friend, unlisted, misled, keyless)
        )
        heard = speak_until_heard(out, known)
        assert heard.position == (0.5,) and 0 <= monotonic_ns() - heard.time_ns < 20e9
        end = time.monotonic() + 20
        wanted = (
            curve.public_key(hosts.root / "unlisted", "unlisted").decode(),
            "no key, or one meant for another",
        )
        while not all(any(words in line for line in caplog.messages) for words in wanted):
            assert time.monotonic() < end, caplog.messages
            speak(out, strangers, 0.1)
        for stranger in strangers:
            assert stranger[STATE.name].received == stranger[STATE.name].refused == 0
    refusals = [line for line in caplog.messages if line.startswith("refused ")]
    assert any("refused 127.0.0.1: key" in line and "is not in" in line for line in refusals)
    assert len(refusals) < 12  # each stranger comes back several times a second


def test_who_is_taken_off_the_list_stays_outside_and_who_is_put_on_it_comes_in(hosts):
    robot = hosts.add("robot")
    friend = hosts.add("friend", knows=("robot",))
    with Publisher(robot, STATE) as out:
        with Subscriber(friend, [STATE]) as early:
            speak(out, [early], 0.5)
            assert early[STATE.name].received == 0
            hosts.trust("robot", "friend")
            speak_until_heard(out, early)
        (hosts.root / "robot" / "friend.key").unlink()
        with Subscriber(friend, [STATE]) as late:
            speak(out, [late], 0.5)
            assert late[STATE.name].received == 0


def test_a_liar_at_the_publishers_address_is_not_believed(hosts):
    hosts.add("robot")
    friend = hosts.add("friend", knows=("robot",))
    liar = hosts.add("liar", knows=("friend",), publisher="liar")
    with Publisher(liar, STATE) as out, Subscriber(friend, [STATE]) as hears:
        speak(out, [hears], 0.7)
        assert hears[STATE.name].received == 0


def test_a_connection_that_says_nothing_or_another_protocol_disturbs_nobody(hosts):
    robot = hosts.add("robot")
    friend = hosts.add("friend", knows=("robot",))
    hosts.trust("robot", "friend")
    host, port = hosts.endpoint.removeprefix("tcp://").split(":")
    with Publisher(robot, STATE) as out, Subscriber(friend, [STATE]) as hears, ExitStack() as stack:
        for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(words)
        assert speak_until_heard(out, hears).gripper == 1.0


def test_plain_tcp_stays_on_this_host_unless_told_otherwise(tmp_path):
    network = Network({STATE.name: RemoteTopic("tcp://0.0.0.0:5999")})
    with pytest.raises(
        ConfigError, match=r"expected keys .* for 'tcp://0\.0\.0\.0:5999': plain TCP is open"
    ):
        install(network, tmp_path)
    (tmp_path / "network.json").write_bytes(msgspec.json.encode(network))
    for use in (lambda: Publisher(tmp_path, STATE), lambda: Subscriber(tmp_path, [STATE])):
        with pytest.raises(ConfigError, match="plain TCP"):
            use()
    for endpoint in (
        "tcp://127.0.0.1:1",
        "tcp://127.3.2.1:1",
        "tcp://[::1]:1",
        "tcp://localhost:1",
        "ipc:///tmp/x",
    ):
        check_plain(endpoint, allowed=False)
    for endpoint in ("tcp://*:1", "tcp://192.168.1.2:1", "tcp://[::]:1", "tcp://robot:1"):
        with pytest.raises(ConfigError):
            check_plain(endpoint, allowed=False)
        check_plain(endpoint, allowed=True)
    for wrong in ("udp://127.0.0.1:1", "127.0.0.1:5555", "tcp://"):
        with pytest.raises(ConfigError, match="expected tcp://host:port"):
            check_plain(wrong, allowed=False)


def test_keys_are_for_their_owner_and_never_replaced(tmp_path, capsys):
    home = tmp_path / "keys"
    assert cli.main(["keys", "new", "robot", "--dir", str(home), "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1])
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert (
        modes == {"robot.key": 0o644, "robot.key_secret": 0o600}
        and home.stat().st_mode & 0o777 == 0o700
    )
    keys = Keys.load(home)
    assert keys.allowed() == {keys.public: "robot"} and told["key"] == keys.public.decode()
    assert zmq.curve_public(keys.secret) == keys.public
    assert cli.main(["keys", "new", "robot", "--dir", str(home)]) == 1
    assert "keys are never replaced" in capsys.readouterr().err and Keys.load(home) == keys
    (home / "robot.key_secret").chmod(0o640)
    assert cli.main(["keys", "list", "--dir", str(home)]) == 1
    assert "expected a file for its owner alone (0600), got 0640" in capsys.readouterr().err


def test_damaged_keys_are_told(tmp_path):
    with pytest.raises(ConfigError, match="expected one file"):
        Keys.load(tmp_path)
    curve.create(tmp_path, "robot")
    keys = Keys.load(tmp_path)
    (tmp_path / "friend.key").write_text("no certificate")
    with pytest.raises(ConfigError, match="expected a ZeroMQ certificate"):
        keys.of("friend")
    with pytest.raises(ConfigError, match="in a key's name"):
        keys.of("../robot")
    (tmp_path / "friend.key").write_text('curve\n    public-key = "short"\n')
    with pytest.raises(ConfigError, match="expected keys of 40 characters, got 5"):
        keys.of("friend")


def test_a_network_file_is_checked(tmp_path):
    path = tmp_path / "network.toml"
    path.write_text(
        'keys = "keys"\n[topics."front/color"]\nendpoint = "tcp://10.0.0.2:5601"\npublisher ='
        ' "camera"\n'
    )
    curve.create(tmp_path / "keys", "robot")
    network = read_network(path)
    assert (
        network.keys == str(tmp_path / "keys")
        and network.topics["front/color"].publisher == "camera"
    )
    with pytest.raises(ConfigError, match=r"expected a ZeroMQ certificate in .*camera\.key"):
        install(network, tmp_path)
    gossip = '[topics."gossip"]\nendpoint = "tcp://[::1]:1"'
    for text, words in (("port = 1", "unknown field `port`"), (gossip, "got 'gossip' for 'topic'")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            install(read_network(path), tmp_path)


def test_times_of_another_host_are_put_on_our_clock():
    ours = monotonic_ns()
    hour = 3600 * 10**9
    # read a second ago
    there = encode(STATE, JointState(time_ns=5 * hour - 10**9, position=(), gripper=0.0))
    clocks = msgspec.msgpack.encode((5 * hour, wall_ns(monotonic_ns())))
    here = decode(STATE, to_local_clock(STATE, [*there, clocks]))
    assert abs(here.time_ns - (ours - 10**9)) < 10**9 / 2
    picture = np.zeros((2, 2, 3), np.uint8)
    front = topic("front/color")
    label = wall_ns(monotonic_ns()) - 10**9
    seen = decode(
        front, to_local_clock(front, encode(front, Frame("front", 7, picture, utc_ns=label)))
    )
    assert abs(seen.time_ns - (ours - 10**9)) < 10**9 / 2
    beyond = msgspec.msgpack.encode((0, 2**64 - 1))
    for wrong in ([*there], [*there, b"\xc1"], [b"x"], [*there, beyond]):
        with pytest.raises(WireError, match="expected 2 parts"):
            decode(STATE, to_local_clock(STATE, wrong))
    for label in (0, 1):  # none, and one from before this host's start
        lost = decode(
            front, to_local_clock(front, encode(front, Frame("front", 7, picture, utc_ns=label)))
        )
        assert isinstance(lost, Frame) and not lost.age_known and lost.time_ns == 0


def test_a_policy_may_be_on_another_host(tmp_path):
    """Two run directories that share nothing but TCP: images go there, chunks come back, on the
    robot's clock.
    """
    ports = free_ports(4)
    names = ("front/color", "task", "robot/state", "chunk")
    there = {name: "gpu" if name == "chunk" else "robot" for name in names}
    topics = {
        n: RemoteTopic(f"tcp://127.0.0.1:{port}", there[n])
        for n, port in zip(names, ports, strict=True)
    }
    run_dirs = {}
    for host in ("robot", "gpu"):
        curve.create(tmp_path / host, host)
        run_dirs[host] = tmp_path / f"{host}-run"
        run_dirs[host].mkdir(mode=0o700)
    for host, other in (("robot", "gpu"), ("gpu", "robot")):
        shutil.copy(tmp_path / other / f"{other}.key", tmp_path / host)
        install(Network(topics, str(tmp_path / host)), run_dirs[host])
    config = PolicyConfig(bundle=str(write_bundle(tmp_path / "bundle")))
    stop = threading.Event()
    policy = threading.Thread(target=policy_process.run, args=(config, run_dirs["gpu"], stop))
    with ExitStack() as stack:
        says = {n: stack.enter_context(Publisher(run_dirs["robot"], topic(n))) for n in names[:3]}
        hears = stack.enter_context(Subscriber(run_dirs["robot"], [topic("chunk")]))
        policy.start()
        try:
            began = monotonic_ns()
            end = time.monotonic() + 20
            while hears["chunk"].message is None:
                assert time.monotonic() < end, "no chunk came back"
                now = monotonic_ns()
                says["robot/state"].send(state())
                says["task"].send(
                    Task(time_ns=now, episode=1, instruction="red cube", started_ns=began)
                )
                picture = np.full((16, 16, 3), now % 256, np.uint8)
                says["front/color"].send(Frame("front", now, picture))
                hears.update(0.05)
        finally:
            stop.set()
            policy.join(10)
        chunk = hears["chunk"].message
    assert (
        isinstance(chunk, ActionChunk) and began - 10**8 < chunk.time_ns <= monotonic_ns() + 10**8
    )
    assert {path.name for path in run_dirs["gpu"].iterdir()} == {"network.json"}
    assert owners(run_dirs["gpu"], "color") == ("front",)  # a recorder finds it


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@pytest.fixture
def loose_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o777)
    yield path


def test_a_run_directory_is_its_owners(tmp_path, loose_dir):
    with pytest.raises(ConfigError, match="expected a directory that its owner alone may write to"):
        Publisher(loose_dir, STATE)
    with Publisher(tmp_path, STATE):
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("robot-state")} == {0o700}
