"""`module:attribute`: what is found, and the one error of each kind where nothing fit is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimvla.runtime.errors import BackendError, ConfigError
from trimvla.runtime.own_objects import is_own, load_function, load_object, look_up, parse_reference

GOOD = """
TABLE = {"a": 1}

def score(statistics, seed):
    return [statistics, seed]

def none():
    pass

class Maker:
    @staticmethod
    def make():
        return "made"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with modules in it that is not on Python's path, as for `trimvla`."""
    before = list(sys.path)
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))]
    )
    (tmp_path / "own_good.py").write_text(GOOD)
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "__init__.py").write_text("")
    (tmp_path / "own_pkg" / "inner.py").write_text(GOOD)
    (tmp_path / "own_broken.py").write_text("x = 1\ny = 1 / 0\n")
    (tmp_path / "own_syntax.py").write_text("def f(:\n")
    (tmp_path / "own_needs.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "own_exits.py").write_text("raise SystemExit(3)\n")
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def test_a_function_of_the_current_directory_is_found(own: Path) -> None:
    assert load_function("own_good:score", "--x", ("statistics", "seed"))(1, 2) == [1, 2]
    assert load_function("own_pkg.inner:score", "--x", ("statistics", "*seed"))(1, 2) == [1, 2]
    assert load_function("own_good:Maker.make", "--x", ())() == "made"
    assert load_object("own_good:TABLE", "--x") == {"a": 1}


def test_no_file_of_the_current_directory_takes_an_installed_modules_place(own: Path) -> None:
    (own / "colorsys.py").write_text("raise RuntimeError('taken')")
    assert callable(load_object("colorsys:rgb_to_hls", "--x"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "own_missing:score",
            "expected a module 'own_missing', found no 'own_missing' in the current directory",
        ),
        ("own_pkg.outer:score", "expected a module 'own_pkg.outer', found no 'own_pkg.outer'"),
        ("own_good.inner:score", "expected a module 'own_good.inner', found no 'own_good.inner'"),
        ("own_good:scor", "expected 'scor' in 'own_good', found none; did you mean 'score'?"),
        ("own_good:zzz", "expected 'zzz' in 'own_good', found none"),
        ("own_good:TABLE", "expected a function (statistics, seed), got dict"),
        ("own_good:none", "expected a function (statistics, seed), got 'own_good:none' with ()"),
        ("own_broken:f", "importing 'own_broken' failed: ZeroDivisionError: division by zero"),
        ("own_syntax:f", "importing 'own_syntax' failed: SyntaxError"),
        (
            "own_needs:f",
            "importing 'own_needs' failed: ModuleNotFoundError: No module named 'not_installed",
        ),
        ("own_exits:f", "importing 'own_exits' failed: SystemExit: 3"),
        (
            "own_good.py:score",
            "expected a module's name, 'own_good', and no file's, got 'own_good.py'",
        ),
        ("./own_good.py:score", "expected module:attribute, such as my_pkg.envs:make"),
        ("own_good:", "expected module:attribute"),
        (":score", "expected module:attribute"),
        ("own good:score", "expected module:attribute"),
        ("x" * 5000 + ":f", "expected module:attribute"),
    ],
)
def test_one_error_that_names_the_option(name: str, words: str, own: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_function(name, "--criterion", ("statistics", "seed"))
    text = str(caught.value)
    assert text.startswith("--criterion: ")
    assert words in text
    assert len(text.splitlines()) == 1
    assert len(text) < 500


def test_where_it_failed_is_named(own: Path) -> None:
    for name, place in (
        ("own_broken:f", "own_broken.py, line 2"),
        ("own_syntax:f", "own_syntax.py, line 1"),
    ):
        with pytest.raises(ConfigError, match=place):
            load_object(name, "--x")


def test_a_table_is_asked_first(own: Path) -> None:
    table = {"ours": len}
    assert look_up("ours", table, "--x", ("one",)) is len
    assert look_up("own_good:score", table, "--x", ("a", "b"))(1, 2) == [1, 2]
    with pytest.raises(
        BackendError,
        match="expected one of ours, or module:attribute of your own, for --x, got 'o'",
    ):
        look_up("o", table, "--x", ("one",), BackendError)


def test_the_form_is_told_without_an_import(own: Path) -> None:
    assert is_own("own_broken:f")
    assert not is_own("own_broken:f:words")
    assert not is_own("openvino")
    assert parse_reference("a.b:c:d:e") is not None
    assert "own_broken" not in sys.modules
