"""TOML -> dataclasses: strict, and every mistake at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trimvla.launch.system.config import build, decode_file
from trimvla.runtime.errors import ConfigError


@dataclass(frozen=True)
class Camera:
    name: str
    hz: float = 12.0

    def __post_init__(self) -> None:
        if self.hz <= 0:
            raise ConfigError(f"expected a positive rate, got {self.hz} for 'hz'")


@dataclass(frozen=True)
class System:
    bundle: str = "tabletop"
    threads: int = 1
    main: Camera = field(default_factory=lambda: Camera("front"))
    cameras: tuple[Camera, ...] = ()
    limit: float | None = None


def test_defaults() -> None:
    assert build(System, {}) == System()


def test_nested_tables_and_arrays(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    cameras = '[[cameras]]\nname = "a"\nhz = 30.0\n[[cameras]]\nname = "b"\n'
    path.write_text(f'bundle = "mine"\n[main]\nname = "wrist"\n{cameras}')
    expected = System("mine", main=Camera("wrist"), cameras=(Camera("a", 30.0), Camera("b")))
    assert build(System, decode_file(path)) == expected


def test_every_mistake_is_reported_at_once() -> None:
    data = {
        "bundel": "x",
        "threads": "two",
        "main": {"hz": 3.0},
        "cameras": [{"name": "a", "hz": -1.0}, {"name": 7}, 3],
    }
    with pytest.raises(ConfigError) as caught:
        build(System, data, "robot.toml")
    text = str(caught.value)
    for expected in (
        "robot.toml: ",
        "bundel: unknown",
        "threads: expected `int`, got `str`",
        "main.name: missing",
        "cameras[0]: expected a positive rate, got -1.0 for 'hz'",
        "cameras[1].name: expected `str`",
        "cameras[2]: expected a table, got 3",
    ):
        assert expected in text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        decode_file(tmp_path / "none.toml")


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("a = [")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        decode_file(path)
