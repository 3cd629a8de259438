"""Run directories that others could change: refused by everyone who uses one, and nothing is
written through a link.
"""

from __future__ import annotations

import os
import pwd
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimvla.launch import cli
from trimvla.launch.system.child import Child
from trimvla.launch.system.run_dirs import lock
from trimvla.launch.system.setup.programs import SYSTEM_FILE, commands
from trimvla.launch.system.supervisor import Supervisor
from trimvla.launch.verbs import record
from trimvla.runtime.bus import curve
from trimvla.runtime.bus.curve import Keys
from trimvla.runtime.bus.network import NETWORK_FILE, Network, install, used
from trimvla.runtime.bus.run_dir import check_run_dir
from trimvla.runtime.bus.sockets import Publisher, Subscriber
from trimvla.runtime.bus.telemetry import Telemetry
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.record import recorder
from trimvla.runtime.record.recorder import Recorder, RecorderConfig

STATE = topic("robot/state")
NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")


def as_nobody(act: Callable[[], object]) -> None:
    """Act as another user, in a process of its own."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            act()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


USERS: dict[str, Callable[[Path], object]] = {
    "publisher": lambda run_dir: Publisher(run_dir, STATE),
    "subscriber": lambda run_dir: Subscriber(run_dir, [STATE]),
    "lock": lock,
    "commands": lambda run_dir: commands({}, run_dir),
    "supervisor": lambda run_dir: Supervisor([], run_dir).__enter__(),
    "network": lambda run_dir: install(Network(), run_dir),
    "record": lambda run_dir: record.run(
        record.Args(run_dir.parent / "a.mcap", run_dir, seconds=0.1)
    ),
    "recorder": lambda run_dir: Recorder(
        RecorderConfig(str(run_dir.parent / "a.mcap")), run_dir, Telemetry("recorder")
    ),
}
every_user = pytest.mark.parametrize("use", USERS.values(), ids=USERS)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A sticky directory that everyone may write to, such as /tmp."""
    with tempfile.TemporaryDirectory(prefix="trimvla-test-") as place:
        Path(place).chmod(0o1777)
        yield Path(place)


@as_root
@every_user
def test_another_users_directory_is_refused(shared: Path, use: Callable[[Path], object]) -> None:
    theirs = shared / "run"
    as_nobody(theirs.mkdir)
    with pytest.raises(
        ConfigError, match=f"expected {theirs} to belong to root or to user root.* user nobody"
    ):
        use(theirs)
    assert list(theirs.iterdir()) == [] and list(shared.iterdir()) == [theirs]


@as_root
@every_user
def test_a_directory_behind_another_users_link_is_refused(
    shared: Path, use: Callable[[Path], object]
) -> None:
    ours = shared / "ours"
    link = shared / "run"
    ours.mkdir(0o700)
    as_nobody(lambda: link.symlink_to(ours))
    with pytest.raises(ConfigError, match=f"expected {link} to belong to root"):
        use(link)
    assert list(ours.iterdir()) == []


@as_root
@pytest.mark.parametrize(
    "kind", ["lock", "robot-state", "robot-state.lock", "a.log", SYSTEM_FILE, NETWORK_FILE]
)
@every_user
def test_what_another_user_left_in_it_is_refused(
    shared: Path, use: Callable[[Path], object], kind: str
) -> None:
    once_open = shared / "run"
    once_open.mkdir()
    once_open.chmod(0o777)
    as_nobody(lambda: (once_open / kind).symlink_to("/etc/passwd"))
    once_open.chmod(0o700)
    with pytest.raises(ConfigError, match=f"expected {once_open / kind} to belong to root"):
        use(once_open)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720])
@every_user
def test_a_directory_that_others_may_write_to_is_refused(
    tmp_path: Path, use: Callable[[Path], object], mode: int
):
    loose = tmp_path / "run"
    loose.mkdir()
    loose.chmod(mode)
    with pytest.raises(
        ConfigError, match=f"expected a directory that its owner alone may write to, got {mode:04o}"
    ):
        use(loose)


@every_user
def test_a_way_that_others_may_change_is_refused(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    run_dir = tmp_path / "loose" / "run"
    run_dir.mkdir(parents=True)
    run_dir.parent.chmod(0o777)
    with pytest.raises(
        ConfigError, match=f"that others cannot write to, got 0777 for {run_dir.parent}"
    ):
        use(run_dir)
    (tmp_path / "link").symlink_to(run_dir)  # our own link does not hide it
    with pytest.raises(
        ConfigError, match=f"that others cannot write to, got 0777 for {run_dir.parent}"
    ):
        use(tmp_path / "link")


def test_our_own_links_and_sticky_directories_are_fine(shared: Path) -> None:
    (shared / "run").mkdir(0o700)
    (shared / "link").symlink_to("run")
    (shared / "again").symlink_to(shared / "link")
    for path in (shared / "run", shared / "link", shared / "again", shared / "run" / ".." / "link"):
        check_run_dir(path)
    (shared / "round").symlink_to("round")
    with pytest.raises(ConfigError, match="at most 40 links"):
        check_run_dir(shared / "round")


@as_root
def test_roots_directory_serves_readers_and_another_user_cannot_publish_in_it(shared: Path) -> None:
    (shared / "run").mkdir(0o755)
    as_nobody(lambda: check_run_dir(shared / "run"))
    with Publisher(shared / "run", STATE), pytest.raises(AssertionError):
        as_nobody(lambda: Publisher(shared / "run", STATE))


KEPT = b"to be kept\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(KEPT)
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir(0o700)
    return path


PLACES: dict[str, Callable[[Path], object]] = {
    "lock": lock,
    "robot-state.lock": lambda run_dir: Publisher(run_dir, STATE),
    "robot-state": lambda run_dir: Publisher(run_dir, STATE),
    "a.log": lambda run_dir: Child("a", ["true"], run_dir / "a.log"),
    NETWORK_FILE: used,
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["link", "name", "pipe"])
def test_no_file_is_opened_through_a_link(
    run_dir: Path, victim: Path, name: str, kind: str
) -> None:
    if kind == "link":
        (run_dir / name).symlink_to(victim)
    elif kind == "name":
        (run_dir / name).hardlink_to(victim)
    else:
        os.mkfifo(run_dir / name)
    got = {"link": "a link|a file", "name": "second name|a file", "pipe": "a pipe|another kind"}[
        kind
    ]
    with pytest.raises(
        ConfigError, match=f"expected .*got {got if kind != 'name' else '.*(second name|a file)'}"
    ):
        PLACES[name](run_dir)
    assert victim.read_bytes() == KEPT


def test_a_reader_does_not_connect_through_a_link(run_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    with Publisher(elsewhere, STATE):
        (run_dir / "robot-state").symlink_to(elsewhere / "robot-state")
        with pytest.raises(
            ConfigError, match=r"expected a socket or nothing at .*robot-state, got a link"
        ):
            Subscriber(run_dir, [STATE])


@pytest.mark.parametrize("name", [SYSTEM_FILE, NETWORK_FILE])
def test_a_file_takes_a_links_place_and_not_its_target(
    run_dir: Path, victim: Path, name: str
) -> None:
    (run_dir / name).symlink_to(victim)
    if name == NETWORK_FILE:
        install(Network(), run_dir)
    else:
        commands({}, run_dir)
    assert victim.read_bytes() == KEPT and not (run_dir / name).is_symlink()


def test_a_system_that_is_refused_changes_nothing_of_the_one_that_runs(
    run_dir: Path, tmp_path: Path, capsys
) -> None:
    system = tmp_path / "system.toml"
    network = tmp_path / "network.toml"
    system.write_text('[camera]\nkind = "synthetic"\n')
    network.write_text('[topics.task]\nendpoint = "tcp://127.0.0.1:1"\n')
    commands({"camera": {"kind": "synthetic"}}, run_dir)
    before = (run_dir / SYSTEM_FILE).read_bytes()
    with Supervisor([], run_dir):
        assert (
            cli.main(["run", str(system), "--run-dir", str(run_dir), "--network", str(network)])
            == 1
        )
    assert "another one runs in" in capsys.readouterr().err
    assert (run_dir / SYSTEM_FILE).read_bytes() == before and not (run_dir / NETWORK_FILE).exists()


def test_a_second_recorder_leaves_no_file(run_dir: Path, tmp_path: Path) -> None:
    taken = pytest.raises(ConfigError, match="publisher of 'recorder/report'")
    with Publisher(run_dir, topic("recorder/report")), taken:
        recorder.run(RecorderConfig(str(tmp_path / "a.mcap"), nice=0), run_dir, threading.Event())
    assert list(tmp_path.iterdir()) == [run_dir]


def test_a_supervisor_that_cannot_start_frees_the_directory(run_dir: Path) -> None:
    threads = threading.active_count()
    with (
        Publisher(run_dir, topic("health")),
        pytest.raises(ConfigError, match="publisher of 'health'"),
    ):
        Supervisor([], run_dir).__enter__()
    with Supervisor([], run_dir):
        pass
    assert threading.active_count() == threads


# Keys


def test_keys_of_a_directory_that_others_may_write_to_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "keys"
    curve.create(home, "robot")
    home.chmod(0o770)
    for use in (lambda: Keys.load(home), lambda: curve.create(home, "other")):
        with pytest.raises(
            ConfigError, match=f"that its owner alone may write to, got 0770 for {home}"
        ):
            use()
    home.chmod(0o700)
    assert Keys.load(home).name == "robot"
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"that others cannot write to, got 0777 for {tmp_path}"):
        Keys.load(home)


@as_root
def test_keys_that_another_user_left_are_refused(shared: Path) -> None:
    home = shared / "keys"
    as_nobody(lambda: curve.create(home, "robot"))
    with pytest.raises(ConfigError, match=f"expected {home} to belong to root"):
        Keys.load(home)


@pytest.mark.parametrize("name", ["robot.key_secret", "robot.key", "friend.key"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_keys_are_files(tmp_path: Path, name: str, kind: str) -> None:
    home = tmp_path / "keys"
    path = tmp_path / "keys" / name
    curve.create(home, "robot")
    if path.exists():
        path.rename(tmp_path / name)
    else:
        curve.create(tmp_path / "theirs", "friend")
        (tmp_path / "theirs" / name).rename(tmp_path / name)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / name)
    with pytest.raises(ConfigError, match=f"expected a file of our own, got .* for {path}"):
        Keys.load(home).allowed()
