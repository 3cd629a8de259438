"""Faults: the switch, the arm and the safety monitor by themselves; then real systems that are
really broken.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_bundle
from trimvla.launch import cli
from trimvla.launch.faults.safety_monitor import Judge
from trimvla.launch.faults.table import PROMISE, ROWS, sections
from trimvla.launch.system.setup.process_table import row_of
from trimvla.launch.system.setup.sections import configure
from trimvla.runtime.bus.messages import ActionChunk, Command, Frame, Health, JointState, Task
from trimvla.runtime.bus.sockets import Subscriber
from trimvla.runtime.bus.topics import color, topic
from trimvla.runtime.clock import NS_PER_MS, monotonic_ns
from trimvla.runtime.control.controller import ControlConfig, Controller, Inputs
from trimvla.runtime.control.safety import Limits
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import PolicyResult
from trimvla.runtime.preprocess.observation import one_image
from trimvla.sim.robots.faults import (
    Fault,
    FaultyCamera,
    FaultyPublisher,
    Kind,
    Switch,
    write_faults,
)
from trimvla.sim.robots.faulty_policy import DummyPolicy, spoil

LISTED = (
    "camera killed",
    "camera frozen",
    "30 % of frames dropped",
    "delayed by 500 ms",
    "skewed by 300 ms",
    "corrupt payloads",
    "NaN",
    "infinite",
    "out of range",
    "policy killed",
    "SIGSTOP",
    "longer than the age budget",
    "control killed",
    "joint state lost",
    "off by an hour",
    "disk full",
    "port taken",
)
ROWS_AT_LEAST = 40
STILL = (0.0,) * 6 + (1.0,)


def at(ms: float) -> int:
    return round(ms * NS_PER_MS)


def command(
    ms: float, sequence: int = 0, action: tuple[float, ...] = STILL, captured_ms: float = 0.0
) -> Command:
    captured_ns = at(captured_ms)
    return Command(
        sequence=sequence,
        time_ns=at(ms),
        episode=1,
        kind="action",
        action=action,
        captured_ns=captured_ns,
    )


def test_every_fault_has_its_row() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) >= ROWS_AT_LEAST
    missing = [words for words in LISTED if not any(words in name for name in names)]
    assert not missing


def test_the_system_that_is_broken_is_valid() -> None:
    for name, section in sections("tabletop").items():
        module, config = configure(name, section)
        assert isinstance(config, getattr(module, row_of(name, section).config)), name


def test_the_safety_monitor_names_what_must_not_be() -> None:
    def said(now: Command, before: Command | None = None) -> str:
        judge = Judge(PROMISE)
        if before is not None:
            judge.violations(before)
        return "; ".join(judge.violations(now))

    assert said(command(700)) == ""
    assert said(command(1100)) == "command 0: an image 1100 ms old"
    assert said(command(0, captured_ms=100)) == "command 0: an image -100 ms old"
    assert "outside its limits in dimension 2" in said(
        command(0, action=(0.0, 0.0, 0.051, 0.0, 0.0, 0.0, 1.0))
    )
    assert "outside its limits in dimension 0" in said(
        command(0, action=(float("nan"), *STILL[1:]))
    )
    left = (-0.03, *STILL[1:])
    right = (0.03, *STILL[1:])
    assert "too sudden in dimension 0" in said(command(100, 1, right), command(0, 0, left))
    assert said(command(1100, 1, right, 1000), command(0, 0, left)) == "", (
        "after a pause it starts from rest"
    )


@pytest.mark.parametrize(
    ("kind", "amount", "shown"),
    [
        ("drop", 1.0, 0),
        ("delay", 1e6, 0),
        ("corrupt", 0.0, 0),
        ("freeze", 0.0, 3),
        ("clock", 3600.0, 3),
    ],
)
def test_a_faulty_camera(kind: Kind, amount: float, shown: int, tmp_path: Path) -> None:
    switch = Switch(tmp_path, "front")
    assert switch.fault() is None
    with (
        closing(FaultyPublisher(tmp_path, topic(color("front")))) as frames,
        Subscriber(tmp_path, [topic(color("front"))]) as hears,
    ):
        camera = FaultyCamera(frames, switch)
        front = hears[color("front")]
        began_ns = monotonic_ns()

        def shoot(number: int, patience_s: float) -> list[Frame]:
            # one image on its way at a time: a socket for images holds no more
            time.sleep(0.05)
            camera.show(Frame("front", began_ns + number, np.full((4, 4, 3), number, np.uint8)))
            hears.update(patience_s)
            return [shot for shot in front.fresh if isinstance(shot, Frame)]

        while not shoot(0, 0.05):  # until both sides have found each other
            continue
        write_faults(tmp_path, {"front": Fault(kind, amount)})
        shots = [
            shot
            for number in (101, 102, 103)
            for shot in shoot(number, 5.0 if shown or kind == "corrupt" else 0.1)
        ]
        assert len(shots) == shown
        if kind == "freeze":
            assert {int(shot.image[0, 0, 0]) for shot in shots} == {101}
            assert len({shot.sequence for shot in shots}) == 3
        if kind == "clock":
            assert abs(shots[0].time_ns - began_ns - 3600 * 10**9) < 10**6  # two clocks are read
        assert front.refused == (3 if kind == "corrupt" else 0)


def test_an_unknown_fault_is_refused(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text('{"front": {"kind": "melt", "amount": 1.0}}')
    with pytest.raises((ConfigError, ValueError), match=r"melt|kind"):
        Switch(tmp_path, "front").fault()


def test_a_spoilt_policy_and_a_stand_in() -> None:
    result = DummyPolicy(20.0).infer(one_image(np.zeros((8, 8, 3), np.uint8), "x"), seed=(0, 1, 2))
    assert 20.0 <= result.milliseconds["total"] < 2000.0
    assert np.isnan(spoil(result, Fault("nan")).actions[:, 0]).all()
    assert np.isfinite(result.actions).all()
    begin = time.monotonic()
    quick = PolicyResult(result.sample, result.sample, result.actions, {"total": 1.0})
    assert spoil(quick, Fault("slow", 0.2)).actions is result.actions
    assert time.monotonic() - begin >= 0.19, "however fast the machine is"


def test_the_robot_holds_while_a_process_is_missing() -> None:
    controller = Controller(ControlConfig(Limits((-1.0,), (1.0,)), ("delta",), hz=10))
    task = Task(time_ns=0, episode=1, instruction="x", started_ns=0)

    def decide(ms: float, health: Health | None) -> tuple[str, str]:
        chunk = ActionChunk(
            time_ns=at(ms) - 1,
            episode=1,
            actions=((0.1,),) * 8,
            control_hz=10,
            kinds=("delta",),
            instruction="x",
            valid_rows=8,
            produced_ns=at(ms),
            frame_sequence=0,
            seed=(),
        )
        robot = JointState(time_ns=at(ms), position=(0.0,), gripper=1.0)
        decision = controller.decide(
            at(ms), Inputs(task=task, robot=robot, chunk=chunk, health=health)
        )
        return decision.state, decision.reason

    missing = Health(time_ns=0, ok=False, reason="process 'policy' ended")
    assert decide(100, None) == ("running", "")
    assert decide(200, missing) == ("hold", "process 'policy' ended")
    assert decide(300, Health(time_ns=0, ok=True)) == ("running", "")


def test_rows_that_are_not_there() -> None:
    from trimvla.launch.verbs.faults import Args

    with pytest.raises(ConfigError, match="expected --only"):
        Args(only=("earthquake",)).rows()


def verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    status = cli.main([*words, "--json"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_robot_is_safe_when_its_policy_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    status, result = verb(capsys, "faults", "--bundle", str(bundle), "--only", "NaN")
    [row] = result["rows"]
    assert (status, row["ok"], row["broken"]) == (0, True, []), result
    assert row["detected_ms"] <= result["bound_ms"]
    assert row["holds"] > 0 and row["actions_after_bound"] == 0


@pytest.mark.slow
@pytest.mark.alone
def test_a_robot_is_safe_whatever_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most rows, with a policy that costs nothing; `trimvla faults` plays all."""
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    frozen = ("frozen: same pixels", "frozen but for one pixel")
    words = ("killed", *frozen, "skewed", "corrupt", "range", "SIGSTOP", "joint state lost")
    status, result = verb(
        capsys, "faults", "--bundle", str(bundle), *(w for word in words for w in ("--only", word))
    )
    assert [row for row in result["rows"] if not row["ok"]] == []
    assert status == 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.usefixtures("tabletop_bundle")
def test_images_of_the_past_are_noticed_by_the_robots_motion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the shipped policy, as the robot must move for it."""
    rows = ("compressed anew", "under a clock", "repeats five")
    status, result = verb(capsys, "faults", *(word for row in rows for word in ("--only", row)))
    assert [row for row in result["rows"] if not row["ok"]] == []
    assert (status, len(result["rows"])) == (0, 3)


def test_a_short_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimvla.launch.verbs.load.WARM_UP_S", 0.5)
    words = (
        "--seconds",
        "1",
        "--cameras",
        "2",
        "--width",
        "64",
        "--height",
        "48",
        "--policy-ms",
        "30",
    )
    _, result = verb(capsys, "load", *words)
    sent = result["commands"]
    assert sent["obeyed"] > 50
    assert sent["lost"] == sent["repeated"] == 0
    assert result["photon_to_action_ms"]["p50"] > 30
    assert set(result["memory_mib"]) == {"arm", "camera-eye0", "camera-eye1", "policy", "control"}
    motion = result["motion"]
    assert motion["commands"] == sent["sent"]
    assert sum(motion["holds"].values()) == pytest.approx(sent["holds"] / sent["sent"], abs=1e-4)
    assert [each["kind"] for each in motion["dimensions"]] == [*["delta"] * 6, "gripper"]
    assert motion["dimensions"][0]["jerk_rms"] is not None
    assert set(result["frame_period_ms"]) == {"eye0", "eye1"}
    assert all(20 < each["p50"] < 60 for each in result["frame_period_ms"].values())


def test_a_load_that_does_not_keep_a_limit_fails_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimvla.launch.verbs.load.WARM_UP_S", 0.1)
    path = tmp_path / "limits.toml"
    path.write_text("[control]\nlost = 0\nphoton_to_action_p99_ms = 1.0\n[cores]\ncontrol = 0.0\n")
    size = ("--seconds", "1", "--cameras", "1", "--width", "64", "--height", "48")
    status, result = verb(capsys, "load", *size, "--policy-ms", "30", "--assert", str(path))
    assert status == 1
    assert "expected at most 1 for 'control.photon_to_action_p99_ms', got" in result["error"]
    rows = {row["name"]: row["ok"] for row in result["assertions"]}
    assert rows == {
        "control.lost": True,
        "control.photon_to_action_p99_ms": False,
        "cores.control": False,
    }
