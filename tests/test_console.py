"""Text from elsewhere is shown as it is: no markup, no emoji, no control character that a terminal
would obey.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.table import Table

from trimvla.launch.console import Console, progress_bar, styled, text_column
from trimvla.launch.options import TextFormatter
from trimvla.runtime.bus.messages import EStop
from trimvla.runtime.bus.sockets import Publisher
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.printable import printable, printable_lines

HOSTILE = (
    "[INST] pick [/INST] [/] [bold]uint8[h, w, 3] :smile: \x1b[2J\x07\r\nerror: forged \u202edne"
)
SHOWN = (
    "[INST] pick [/INST] [/] [bold]uint8[h, w, 3] :smile: \\x1b[2J\\x07\\r\\nerror: forged"
    " \\u202edne"
)
SYSTEM = """
[arm]
process = "sim-arm"

[control]
hz = 10.0

[control.limits]
low = [-0.05, -0.05, -0.05, -0.4, -0.4, -0.4, 0.0]
high = [0.05, 0.05, 0.05, 0.4, 0.4, 0.4, 1.0]
"""


def cli(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trimvla.launch.cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


def on_terminal(
    command: list[str], meanwhile: Callable[[], None], environ: dict[str, str]
) -> tuple[int, str]:
    """Exit status and everything that a terminal of 300 columns got; `meanwhile` is called while it
    runs.
    """
    master, slave = pty.openpty()
    environ = {**os.environ, "COLUMNS": "300", "TERM": "xterm", **environ}
    process = subprocess.Popen(
        command, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL, env=environ
    )
    os.close(slave)
    got = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                return
            got.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    while process.poll() is None:
        meanwhile()
    reader.join()
    os.close(master)
    return process.returncode, got.decode(errors="replace")


def test_printable_keeps_letters_and_escapes_what_moves_a_terminal() -> None:
    assert printable(HOSTILE) == SHOWN
    kept = "größer, 拾え, می\u200cخواهم, \u2713 \U0001f600 5 %"
    assert printable(kept) == kept
    assert printable("x" * 9, 8) == "xxxxxxx…"
    assert printable("größer", 6) == "größer"
    assert printable("\udc80\x9b\u2028") == "\\udc80\\x9b\\u2028"


def test_printable_lines_indents_all_but_the_first() -> None:
    assert printable_lines("one\nerror: two\x1b") == "one\n    error: two\\x1b"


def test_a_console_parses_nothing_wherever_a_string_stands() -> None:
    file = io.StringIO()
    console = Console(file=file, width=400)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(HOSTILE, markup=True, emoji=True)
    console.print(styled("no", "red", HOSTILE))
    console.print(table)
    assert file.getvalue().count(SHOWN) == 7
    assert "\x1b[2J" not in file.getvalue()


def test_a_live_line_and_a_bar_parse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, width=400)
    with console.status(HOSTILE) as line:
        console.print(line.renderable)
        line.update(HOSTILE)
        console.print(line.renderable)
    assert file.getvalue().count(SHOWN) >= 2
    with progress_bar(text_column("{task.fields[note]}")) as progress:
        progress.add_task(HOSTILE, note=HOSTILE, total=1)
        console.print(progress.make_tasks_table(progress.tasks))
    assert file.getvalue().count(SHOWN) >= 4


def test_a_log_line_cannot_be_forged() -> None:
    record = logging.LogRecord("trimvla", logging.INFO, "", 0, "received %s", (HOSTILE,), None)
    assert TextFormatter("%(levelname)s %(message)s").format(record) == f"INFO received {SHOWN}"
    try:
        raise ValueError("x\nERROR trimvla: forged\x1b[2J")
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = TextFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert lines[1].startswith("    Traceback")
    assert all(line.startswith("    ") for line in lines[1:])
    assert not any("\x1b" in line for line in lines)


def test_a_system_survives_the_source_of_an_emergency_stop_and_its_task(tmp_path: Path) -> None:
    """On a terminal, where the live line is drawn; the source stands in control's reason."""
    (tmp_path / "system.toml").write_text(SYSTEM)
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    words = [
        "run",
        str(tmp_path / "system.toml"),
        "--run-dir",
        str(run_dir),
        "--seconds",
        "6",
        "--task",
        HOSTILE,
    ]
    pressed = Publisher(run_dir, topic("estop"))

    def press() -> None:
        pressed.send(EStop(time_ns=monotonic_ns(), pressed=True, source=HOSTILE))
        threading.Event().wait(0.05)

    command = [sys.executable, "-m", "trimvla.launch.cli", *words, "--json"]
    status, got = on_terminal(command, press, {"PYTHONUNBUFFERED": "1"})
    pressed.close()
    result = json.loads(got[got.rindex('{"ok"') :])
    assert status == 1, "the robot was never served"
    assert result["seconds"] >= 6, "it ran to its end"
    assert result["error"].startswith("process 'control': the emergency stop is pressed by [INST]")
    assert "Traceback" not in got
    assert f"pressed by {SHOWN}" in got
    assert "\x1b[2J" not in got
    log = (run_dir / "control.log").read_text()
    assert not [line for line in log.splitlines() if line.startswith("error: forged")]


def test_a_folder_with_brackets_is_named_in_full(tmp_path: Path) -> None:
    place = tmp_path / "[old] [/red]"
    place.mkdir(parents=True)
    done = cli("serve", str(place))
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_wrong_on_the_command_line_is_shown_escaped() -> None:
    done = cli("serve", "tabletop", "--unknown\x1b[2J", "\x1b]0;title\x07")
    assert done.returncode == 2
    assert "\x1b[2J" not in done.stderr
    assert "\x1b]" not in done.stderr


def test_doctor_names_the_extra_to_install() -> None:
    from trimvla.launch.verbs import doctor

    result = msgspec.structs.replace(
        doctor.examine(),
        advice=["pip install 'trimvla[camera]'   (for the verbs that camera)"],
        cameras=["/dev/video[0]"],
    )
    file = io.StringIO()
    console = Console(file=file, width=200)
    console.print(doctor.as_table(result))
    for line in result.advice:
        console.print(f"  - {line}")
    assert "pip install 'trimvla[camera]'" in file.getvalue()
    assert "/dev/video[0]" in file.getvalue()


@pytest.mark.parametrize("verb", ["demo", "run", "serve", "eval", "bench", "inspect", "replay"])
def test_help_has_every_word_of_the_options(verb: str) -> None:
    """tyro shows the docstrings; brackets, per cent signs and backticks in them are text too."""
    done = cli(verb, "--help", env={**os.environ, "COLUMNS": "2000"})
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("run", "robot", "--task", b"pick \xff up"),
        ("demo", b"\xfe"),
        ("run", "robot", b"--camera-front.name=\xff"),
        (b"\xff",),
    ],
)
def test_words_that_are_not_utf8_are_refused_before_anything_starts(
    words: tuple, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "trimvla.launch.cli", *words, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected text in UTF-8")
    assert "Traceback" not in done.stderr
    assert not json.loads(done.stdout.splitlines()[-1])["ok"]
    assert list(tmp_path.iterdir()) == []
