"""The doctor does what it reports: real sessions and a real frame; and it never fails for want of a
GPU.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from trimvla.launch import cli
from trimvla.launch.machine import probes
from trimvla.launch.machine.results import DoctorResult, ProbeAnswer
from trimvla.launch.result import as_json
from trimvla.launch.verbs import doctor


@pytest.fixture(scope="module")
def result() -> DoctorResult:
    """One examination of this machine."""
    return doctor.examine()


def test_this_machine_can_run_a_bundle(result: DoctorResult) -> None:
    assert result.ok
    assert result.backends["CPUExecutionProvider"].ok
    assert (result.machine.cores or 0) >= 1


def test_everything_is_reported_with_a_reason(result: DoctorResult) -> None:
    answers = [*result.backends.values(), *result.rendering.values(), result.gpu, result.tensorrt]
    assert all(answer.ok or answer.why for answer in answers)
    assert result.timer.p50_us <= result.timer.p99_us <= result.timer.max_us


def test_it_is_json_and_a_table(result: DoctorResult) -> None:
    assert msgspec.convert(json.loads(as_json(result)), DoctorResult) == result
    assert doctor.as_table(result).row_count >= 6


def test_a_provider_that_falls_back_is_not_ok() -> None:
    answer = probes.run_probe("provider", "TensorrtExecutionProvider")
    if answer.ok:
        pytest.skip("this machine really has TensorRT")
    assert "fell back to CPUExecutionProvider" in (answer.why or "")


def test_a_probe_that_crashes_is_an_answer() -> None:
    answer = probes.run_probe("rendering", env={"MUJOCO_GL": "nonsense"})
    assert not answer.ok
    assert answer.why


def test_a_probe_that_hangs_is_an_answer() -> None:
    assert probes.run_probe("provider", timeout_s=0.001) == ProbeAnswer(
        ok=False, why="no answer within 0.001 s"
    )


def test_advice_names_what_is_missing(result: DoctorResult) -> None:
    no = ProbeAnswer(ok=False, why="x")
    poor = msgspec.structs.replace(
        result,
        packages={**result.packages, "pyzmq": None, "torch": None},
        rendering={"egl": no, "osmesa": no},
        gpu=ProbeAnswer(ok=True, devices=["NVIDIA Orin"]),
        backends={"CPUExecutionProvider": ProbeAnswer(ok=True)},
        tensorrt=no,
    )
    text = "\n".join(doctor.advice(poor))
    for expected in ("pyzmq", "trimvla[export]", "libosmesa6", "trimvla[gpu]", "trimvla[tensorrt]"):
        assert expected in text


def test_the_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, result: DoctorResult
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: result)
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is True
