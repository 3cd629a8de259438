"""A run's outcomes on disk: what counts as played after a crash, and whose file it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimvla.runtime.errors import ConfigError
from trimvla.sim.evaluation.outcomes import OutcomeLog, read_header
from trimvla.sim.evaluation.success import Outcome

HEADER = {"task": "tabletop", "seeds": [0, 4]}
ROLES = ("reference", "candidate")


def played(seed: int, latency: str = "") -> dict[str, Outcome]:
    return {
        role: Outcome(seed, "pick", "pick up the can", True, 9, latency, inference_ms=seed + 0.5)
        for role in ROLES
    }


def test_whole_rounds_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "outcomes.jsonl"
    with OutcomeLog(path, HEADER, ROLES) as log:
        log.add(played(1))
        log.add(played(1, "150"))
    with OutcomeLog(path, HEADER, ROLES) as log:
        assert log.rounds == {("", 1): played(1), ("150", 1): played(1, "150")}
        assert log.missing([("", 0), ("", 1), ("150", 1), ("150", 2)]) == [("", 0), ("150", 2)]
    assert read_header(path) == HEADER
    assert read_header(tmp_path / "nowhere") is None


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_round_that_was_cut_is_played_again_and_spoils_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "outcomes.jsonl"
    with OutcomeLog(path, HEADER, ROLES) as log:
        log.add(played(0))
        log.add(played(1))
    path.write_text(path.read_text()[:-cut])
    with OutcomeLog(path, HEADER, ROLES) as log:
        assert log.missing([("", 0), ("", 1)]) == ([] if cut == 1 else [("", 1)])
        log.add(played(1))
        log.add(played(2))
    with OutcomeLog(path, HEADER, ROLES) as log:
        assert sorted(seed for _, seed in log.rounds) == [0, 1, 2]


def test_another_runs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    OutcomeLog(path, HEADER, ROLES).__exit__()
    with pytest.raises(ConfigError, match=r"with 'seeds' \[0, 4\] instead of \[0, 5\]"):
        OutcomeLog(path, {**HEADER, "seeds": [0, 5]}, ROLES)
    path.write_text("hello\n")
    with pytest.raises(ConfigError, match="got another file"):
        OutcomeLog(path, HEADER, ROLES)
