"""An observation with a camera too few or of a wrong name, a state of another length or order, or a
prompt that is too long: one error that names it, by every way to a policy, and the next one is
answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap")

from tests import several_cameras_bundle
from tests.groot_client import GrootClient
from tests.several_cameras_bundle import STATE_NAMES
from tests.test_several_cameras import groot_keys, lerobot_keys, openpi_keys, serving
from trimvla.launch import cli
from trimvla.runtime.bundle.inputs_and_output import StateSpec
from trimvla.runtime.errors import ObservationError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.preprocess.state import check_state_names
from trimvla.runtime.servers.packing import pack, unpack
from trimvla.runtime.servers.query import normalise

IMAGE = np.zeros((12, 16, 3), np.uint8)
TWO = {"camera1": IMAGE, "camera2": IMAGE}
STATE = np.arange(5, dtype=np.float32)
WORDS = "stack the red cube"
FITS = Observation(TWO, WORDS, STATE)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two cameras, and a state whose numbers have names."""
    return several_cameras_bundle.write_bundle(tmp_path_factory.mktemp("two") / "bundle")


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Iterator[Policy]:
    policy = Policy.load(bundle, threads=1)
    yield policy
    policy.close()


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Observation([IMAGE, IMAGE], WORDS, STATE), r"'camera2'\], got list"),  # type: ignore[arg-type]
        (Observation({**TWO, 3: IMAGE}, WORDS, STATE), r"\[3\] too many"),  # type: ignore[dict-item]
        (TWO, r"expected an Observation\(images, instruction, state\), .* got dict"),
        (Observation(TWO, WORDS, np.zeros(5, complex)), r"'state', got complex128\[5\]"),
        (Observation(TWO, WORDS, ["1"] * 5), "for 'state', got list"),  # type: ignore[arg-type]
        (Observation(TWO, WORDS, STATE, STATE_NAMES[:2]), r"in this order, got \['x', 'y'\]"),
        (Observation(TWO, WORDS, STATE, "xyzwg"), "names for 'state_names', got 'xyzwg'"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_in_python_it_is_one_of_our_errors(seen: Any, words: str, policy: Policy) -> None:
    with pytest.raises(ObservationError, match=words):
        policy.infer(seen)
    assert np.isfinite(policy.infer(FITS).actions).all()


def test_names_are_counted_where_the_policy_has_none() -> None:
    spec = StateSpec(names=(), dim=3, padded=3, statistics="none")
    check_state_names(("a", "b", "c"), spec)
    with pytest.raises(ObservationError, match=r"3 names for 'state_names', got \('a', 'b'\)"):
        check_state_names(("a", "b"), spec)


# --- by the servers ---

Send = Callable[[str, Observation, dict[str, Any]], str]
FORMS = {"LeRobot": lerobot_keys, "openpi": openpi_keys, "GR00T": groot_keys}


def vla_eval_keys(seen: Observation) -> dict[str, Any]:
    return {"images": dict(seen.images), "states": seen.state, "task_description": seen.instruction}


@pytest.fixture(scope="module")
def send(bundle: Path) -> Iterator[Send]:
    """Asks `trimvla serve` in the words of a convention; the error that came back, or nothing."""
    connect = pytest.importorskip("websockets.sync.client").connect
    with (
        serving(bundle) as (zmq_address, websocket_address),
        connect(websocket_address, max_size=None) as socket,
        GrootClient(zmq_address) as client,
    ):
        socket.recv()

        def ask(form: str, seen: Observation, more: dict[str, Any]) -> str:
            made = {**{**FORMS, "vla-eval": vla_eval_keys}[form](seen), **more}
            if form == "GR00T":
                try:
                    client.get_action(made)
                except RuntimeError as error:
                    return str(error)
                return ""
            socket.send(pack(made, "openpi"))
            answer = socket.recv()
            if isinstance(answer, str):
                return answer
            assert "actions" in unpack(answer)
            return ""

        yield ask


CASES = {
    "a camera too few": (Observation({"camera1": IMAGE}, WORDS, STATE), r"missing \['camera2'\]"),
    "a wrong name": (
        Observation({"camera1": IMAGE, "camra2": IMAGE}, WORDS, STATE),
        r"camra2'.*: missing \['camera2'\]",
    ),
    "another length": (Observation(TWO, WORDS, STATE[:4]), r"5 numbers of .*'state', got .*\[4\]"),
    "too long": (Observation(TWO, "cube " * 40, STATE), r"at most 16 tokens for the prompt"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", [*FORMS, "vla-eval"])
def test_a_client_of_any_convention_gets_one_error(form: str, case: str, send: Send) -> None:
    seen, words = CASES[case]
    message = send(form, seen, {})
    assert re.search(words, message), message
    assert "Traceback" not in message
    assert not send(form, FITS, {})


def test_a_state_in_parts_is_checked_by_their_names(send: Send) -> None:
    parts = {name: np.zeros((1, 1, 1), np.float32) for name in STATE_NAMES}
    assert not send("GR00T", FITS, {"state": parts})
    turned = dict(reversed(parts.items()))
    assert "in this order, got ['gripper.pos', 'yaw'" in send("GR00T", FITS, {"state": turned})


def test_a_camera_for_a_bundle_with_several_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", str(bundle), "--websocket", "0", "--camera", "camera1", "--seconds", "1"]
    assert cli.main(words) == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "expected no 'camera' for a policy that looks through ['camera1', 'camera2']" in message


def one_camera(observation: dict[str, Any], own: str) -> int:
    """Which image a policy with one camera of this name is given."""
    return int(normalise(observation, cameras=(own,)).image[0, 0, 0])


@pytest.mark.parametrize("form", ["LeRobot", "openpi"])
def test_a_policy_with_one_camera_gets_its_own(form: str) -> None:
    """Also where another has a more usual name."""
    prefix, task = (
        ("observation.images.", "task") if form == "LeRobot" else ("observation/", "prompt")
    )
    sent = {f"{prefix}image": IMAGE, f"{prefix}wrist_image": IMAGE + 7, task: WORDS}
    assert one_camera(sent, "wrist_image") == 7
    assert one_camera(sent, "image") == 0
    assert one_camera(sent, "front") == 0, "the main view, under one of its usual names"
    with pytest.raises(ObservationError, match="an image of the camera 'gripper_image', got"):
        one_camera(sent, "gripper_image")
    with pytest.raises(ObservationError, match="an image of the camera 'gripper_image', got"):
        one_camera({f"{prefix}image": IMAGE, task: WORDS}, "gripper_image")
