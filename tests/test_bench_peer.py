"""What somebody else runs takes turns in a benchmark, as a process, if it computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest

from tests.smolvla_policy import TINY, random_policy
from tests.tiny_bundle import write_bundle
from trimvla.launch import cli
from trimvla.launch.bench.peers.random_smolvla import byte_tokenizer
from trimvla.policies.smolvla.lerobot.save import save_lerobot
from trimvla.policies.smolvla.lerobot.source import open_checkpoint

ONES = {
    name: {"mean": [0.0] * dim, "std": [1.0] * dim}
    for name, dim in (("state", TINY.state_dim), ("action", TINY.action_dim))
}
TWIN = f"{sys.executable} -m tests.twin_peer"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in LeRobot's layout."""
    directory = tmp_path_factory.mktemp("peer") / "source"
    return save_lerobot(
        random_policy(), directory, statistics=ONES, tokenizer=byte_tokenizer(TINY.text.vocab)
    )


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    """The same, exported."""
    out = source.with_name("bundle")
    assert cli.main(["export", str(source), "--out", str(out), "--json"]) == 0
    return out


def bench(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> dict:
    given = ["bench", *map(str, words), "--instruction", "pick it", "--rounds", "2"]
    assert cli.main([*given, "--warmup", "1", "--json"]) == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_is_saved_is_opened_again(source: Path) -> None:
    opened = open_checkpoint(source)
    policy = random_policy()
    prompt = msgspec.structs.replace(TINY.prompt, buckets=(16,))  # of which no file speaks
    assert opened.cfg == msgspec.structs.replace(TINY, prompt=prompt)
    assert all(weight.equal(opened.weights[name]) for name, weight in policy.state_dict().items())


@pytest.mark.slow
def test_a_peer_takes_turns_and_is_compared_with(
    source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(capsys, bundle, "--peer", f"{TWIN} {source}")
    rows = {(row["name"], row["layer"]): row for row in result["rows"]}
    assert "peer" in result["backends"]
    twin = rows["twin", "L0"]
    assert (twin["backend"], twin["ratio_to_peer"]) == ("peer", 1.0)
    own = next(
        row
        for (_, layer), row in rows.items()
        if layer == "L0" and row is not twin and row["part"] == "total"
    )
    assert own["ratio_to_peer"] > 0
    assert ("twin", "L2") not in rows


@pytest.mark.slow
def test_a_peer_that_computes_something_else_is_refused(
    source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(capsys, bundle, "--peer", f"{TWIN} {source} 0.001", status=1)
    assert "within 0.0001, got 0.001 apart" in json.dumps(result)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{sys.executable} -c pass", "ended with status 0"),
        (f"{sys.executable} -c print(1)", "a line of JSON with ['name'], got '1'"),
        ("/nothing/here", "expected a command for --peer, got '/nothing/here'"),
    ],
)
def test_a_peer_that_answers_something_else_is_refused(
    command: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench(capsys, write_bundle(tmp_path / "tiny"), "--peer", command, status=1)
    assert words in json.dumps(result)
