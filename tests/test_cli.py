"""The command line: the verbs' table, exit codes, one JSON object last, one line for an expected
error.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, is_dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_origin, get_type_hints

import msgspec
import pytest

from trimvla.launch import cli
from trimvla.launch.extras import BROUGHT_BY
from trimvla.launch.options import Options
from trimvla.launch.result import VerbResult
from trimvla.runtime.errors import BundleError
from trimvla.sim.rendering import choose_renderer


@dataclass(frozen=True)
class FakeArgs(Options):
    """A verb for these tests."""

    count: int = 1
    """How many."""


class Counted(VerbResult, frozen=True, kw_only=True):
    """What the verb of these tests answers."""

    count: int


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Make one verb `fake` whose `run` the test chooses."""

    def install(run) -> None:
        monkeypatch.setattr(
            cli, "VERBS", (cli.Verb("fake", "fake_verb_module", "sim", "for tests"),)
        )
        module = SimpleNamespace(Args=FakeArgs, run=run)
        monkeypatch.setitem(sys.modules, "trimvla.launch.verbs.fake_verb_module", module)

    return install


def raising(error: BaseException):
    def run(args: FakeArgs) -> VerbResult:
        raise error

    return run


def last_json(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb.name} " in text for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_every_verb_has_arguments_and_a_run(verb: cli.Verb) -> None:
    module = verb.load()
    assert module.Args is verb.args()
    assert issubclass(module.Args, Options)
    assert is_dataclass(module.Args)
    assert callable(module.run)


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_an_option_of_several_words_is_given_once_for_each(verb: cli.Verb) -> None:
    """`tuple | None` would be read as one word, and the words before it lost."""
    hints = get_type_hints(verb.load().Args)
    mixed = {
        name: hint
        for name, hint in hints.items()
        if any(get_origin(part) in (tuple, list) for part in get_args(hint))
        and get_origin(hint) is not tuple
    }
    assert mixed == {}


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from trimvla.launch import cli; cli.main(['--help']);"
        "assert not {'torch', 'mujoco', 'cv2', 'onnxruntime', 'tyro', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_options_wait_for_torch() -> None:
    """Nor does `trimvla export --help`; a preset of `train` knows its policy, which is torch's."""
    code = (
        "import sys; from trimvla.launch import cli\n"
        "for verb in cli.VERBS:\n"
        "    verb.name == 'train' or verb.args()\n"
        "    assert 'torch' not in sys.modules, verb.name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trimvla ")


def test_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docter"]) == 2
    assert "did you mean 'doctor'?" in capsys.readouterr().err


def test_result_is_one_json_object_on_the_last_line(
    verb, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(lambda args: Counted(ok=True, count=args.count))
    assert cli.main(["fake", "--count", "3", "--json"]) == 0
    assert last_json(capsys.readouterr().out) == {"ok": True, "count": 3}


def test_without_json_nothing_is_printed_for_programs(
    verb, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(lambda args: VerbResult(ok=True))
    assert cli.main(["fake"]) == 0
    assert capsys.readouterr().out == ""


def test_a_result_that_is_not_ok_fails(verb) -> None:
    verb(lambda args: VerbResult(ok=False))
    assert cli.main(["fake"]) == 1


def test_expected_error_is_one_line(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(BundleError("manifest.json: not found")))
    assert cli.main(["fake", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: manifest.json: not found\n"
    assert last_json(captured.out) == {"ok": False, "error": "manifest.json: not found"}


def test_unexpected_error_keeps_its_traceback(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(ZeroDivisionError("by zero")))
    assert cli.main(["fake", "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert last_json(captured.out)["error"] == "ZeroDivisionError: by zero"


def test_missing_package_names_the_install(
    verb, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)  # as if it were not installed
    verb(lambda args: importlib.import_module("mujoco"))
    assert cli.main(["fake", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: `trimvla fake` needs mujoco: pip install 'trimvla[sim]'\n"
    assert last_json(captured.out)["ok"] is False


FAKE_VERB = """
import trimvla.launch.options
from dataclasses import dataclass

@dataclass(frozen=True)
class Args(trimvla.launch.options.Options):
    pass

def run(args):
    {statement}
"""
BROKEN = {
    "ours, a name that is not there": "from trimvla.launch.options import nothing_of_this_name",
    "ours, a module that is not there": "import trimvla.launch.no_such_module",
    "a module that nobody brings": "import no_such_package_at_all",
    "installed, lacks a part of its own": "import torch",
    "installed, lacks what it needs itself": "import mcap",
    "installed, lacks a shared library": "import onnx",
}


@pytest.mark.parametrize("name", BROKEN)
def test_any_other_import_error_keeps_its_traceback(name: str, tmp_path: Path) -> None:
    """In a process of its own, for which broken packages lie before the installed ones."""
    (tmp_path / "broken_verb.py").write_text(FAKE_VERB.format(statement=BROKEN[name]))
    for package, text in (
        ("torch", "from torch import _C_that_is_gone"),
        ("mcap", "import lz4_that_is_gone"),
        ("onnx", "raise ImportError('libGL.so.1: cannot open shared object file')"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text + "\n")
    code = (
        "import sys; from trimvla.launch import cli, verbs;"
        f"verbs.__path__.append({str(tmp_path)!r});"
        "cli.VERBS = (cli.Verb('fake', 'broken_verb', 'export', 'for tests'),);"
        "sys.exit(cli.main(['fake', '--json']))"
    )
    environ = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert BROKEN[name] in done.stderr
    assert "pip install" not in done.stderr
    assert last_json(done.stdout)["error"].startswith(("ImportError: ", "ModuleNotFoundError: "))


def test_the_hints_know_what_the_extras_bring(repo_root: Path) -> None:
    """The table against pyproject.toml, for the packages that are installed here."""
    extras = msgspec.toml.decode((repo_root / "pyproject.toml").read_bytes())["project"][
        "optional-dependencies"
    ]
    bring = {
        extra: {re.split(r"[^\w.-]", need)[0].lower() for need in needs}
        for extra, needs in extras.items()
    }
    installed = packages_distributions()
    for module, brought_by in BROUGHT_BY.items():
        assert set(brought_by) <= set(extras), module
        names = {name.lower().replace("_", "-") for name in installed.get(module, ())}
        really = {extra for extra, needs in bring.items() if names & needs} - {"gpu", "dev"}
        if brought_by and names:
            assert set(brought_by) >= really and really, (module, names, really)


def test_interrupt(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()))
    assert cli.main(["fake", "--json"]) == 130
    assert last_json(capsys.readouterr().out)["error"] == "interrupted"


@pytest.mark.parametrize("words", ["--help", "eval --help", "inspect tabletop --json"])
def test_a_reader_that_leaves_ends_the_program_quietly(words: str) -> None:
    """As `trimvla eval --help | head -1` does; with and without Python's own buffer."""
    command = [sys.executable, "-m", "trimvla.launch.cli", *words.split()]
    for unbuffered in ("", "1"):
        reader, writer = os.pipe()
        os.close(reader)
        environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environ, check=False
        )
        os.close(writer)
        assert done.returncode == 141
        assert "Traceback" not in done.stderr and "Broken pipe" not in done.stderr


def test_wrong_option_still_ends_in_json(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda args: VerbResult(ok=True))
    assert cli.main(["fake", "--cuont", "3", "--json"]) == 2
    captured = capsys.readouterr()
    assert "--count" in captured.err
    assert last_json(captured.out)["ok"] is False


@pytest.mark.parametrize(
    ("environ", "found", "expected"),
    [
        ({}, {"EGL", "OSMesa"}, "egl"),
        ({}, {"OSMesa"}, "osmesa"),
        ({}, set(), None),
        ({"MUJOCO_GL": "glfw"}, {"EGL"}, "glfw"),
    ],
)
def test_renderer_choice(environ: dict[str, str], found: set[str], expected: str | None) -> None:
    assert choose_renderer(environ, lambda name: name if name in found else None) == expected
    assert environ.get("MUJOCO_GL") == expected
