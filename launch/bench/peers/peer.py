"""Somebody else's policy in the same turns: another process, often in another environment.

A peer reads lines of JSON and answers each with one. First come
`{"inputs": FILE, "folder": DIR, "threads": N}`: an .npz with what the bundle's stages are given, by
tensor name (images, ids, state, noise ...), a folder to write into, and the threads of an operator
(0: all cores); it answers `{"name": WHAT_RUNS}`. Every further line is a turn: it computes the
actions from these inputs and answers `{"milliseconds": TIME, "actions": FILE}`, an .npy. When its
input ends, it ends. Its actions must be the dense bundle's within `TOLERANCE` before anything is
timed. Knows no policy.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

import numpy as np

from trimvla.launch.bench.subjects import BenchBundle, BenchInput
from trimvla.launch.bench.turns import PEER, TOTAL, Subject, Times, stage_inputs
from trimvla.runtime.bundle.manifest import PLAIN
from trimvla.runtime.errors import BackendError, ConfigError

TOLERANCE = 1e-4  # on the raw sample
PATIENCE = 600.0  # s; a peer loads, and may compile, before it answers
LEAVES = 10.0  # s


class Peer:
    """A running peer, opened with inputs."""

    def __init__(self, command: str, inputs: Path, folder: Path, threads: int) -> None:
        """Start it and wait for its name.

        Raises:
            ConfigError: the command cannot be started.
            BackendError: it answers with something else, or not at all.
        """
        self.command = command
        try:
            self._process = subprocess.Popen(
                shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except (OSError, ValueError, IndexError) as error:
            raise ConfigError(f"expected a command for --peer, got {command!r}: {error}") from error
        self._answers: Queue[str] = Queue()
        assert self._process.stdout is not None
        Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()
        try:
            opening = {"inputs": str(inputs), "folder": str(folder), "threads": threads}
            self.name = str(self._ask(opening, "name")["name"])
        except BaseException:
            self.close()
            raise

    def turn(self, number: int) -> Times:
        """One call, timed by the peer: L0, as graphs are that lie in this process."""
        took = self._ask({"turn": number}, "milliseconds", "actions")["milliseconds"]
        return {("L0", TOTAL): self._milliseconds(took)}

    def actions(self) -> np.ndarray:
        """Of one call. BackendError where the file is not there or not an array."""
        path = self._ask({"turn": 0}, "milliseconds", "actions")["actions"]
        try:
            return np.load(Path(path), allow_pickle=False)
        except (OSError, TypeError, ValueError) as error:
            raise BackendError(
                f"peer {self.command!r}: expected actions as an .npy, got {path!r}: {error}"
            ) from error

    def close(self) -> None:
        """End its input, and then the peer itself where it stays."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has left
            self._process.stdin.close()
        try:
            self._process.wait(LEAVES)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, line: Mapping[str, object], *fields: str) -> dict[str, Any]:
        """Send a line; the answer, which has these fields."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has left, which shows at once below
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        try:
            got = self._answers.get(timeout=PATIENCE)
        except Empty:
            raise BackendError(
                f"peer {self.command!r}: expected an answer within {PATIENCE:.0f} s, got none"
            ) from None
        if not got:
            status = self._process.wait(LEAVES)
            raise BackendError(
                f"peer {self.command!r}: expected an answer with {list(fields)}, but it ended with"
                f" status {status}; what it wrote to standard error stands above"
            )
        try:
            answer = json.loads(got)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not set(fields) <= answer.keys():
            raise BackendError(
                f"peer {self.command!r}: expected a line of JSON with {list(fields)}, got"
                f" {got.strip()[:200]!r}"
            )
        return answer

    def _milliseconds(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise BackendError(
                f"peer {self.command!r}: expected a time above 0 for 'milliseconds', got {value!r}"
            )
        return float(value)


def _read(lines: IO[str], into: Queue[str]) -> None:
    """All lines, then an empty one."""
    for line in lines:
        into.put(line)
    into.put("")


def peer_subjects(
    commands: tuple[str, ...],
    dense: BenchBundle,
    threads: int,
    bench_input: BenchInput,
    stack: ExitStack,
) -> list[Subject]:
    """Each command as one more subject, whose actions are the dense bundle's; `stack` ends them.

    Raises:
        ConfigError: the bundle is not dense in float32, or a command cannot be started.
        BackendError: a peer answers wrongly, or gives other actions.
    """
    if not commands:
        return []
    manifest = dense.policy.manifest
    if not manifest.plan.dense or manifest.precision != "float32":
        raise ConfigError(
            "expected a dense bundle in float32 for --peer, as the bundle or as --against, got"
            f" '{dense.name}'"
        )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimvla-peer-")))
    given: dict[str, Any] = chain_inputs(dense, bench_input)
    expected = dense.policy.chain.run(given, manifest.modes[PLAIN])[0]["actions"]
    np.savez(folder / "inputs.npz", **given)
    found: list[Subject] = []
    for index, command in enumerate(commands):
        place = folder / str(index)
        place.mkdir()
        peer = Peer(command, folder / "inputs.npz", place, threads)
        stack.callback(peer.close)
        check_same(peer, expected)
        taken = {subject.name for subject in found}
        name = f"{peer.name} ({index + 1})" if peer.name in taken else peer.name
        found.append(Subject(name, dense.name, PEER, True, (peer.turn,)))
    return found


def chain_inputs(entry: BenchBundle, bench_input: BenchInput) -> dict[str, np.ndarray]:
    """What the stages of a bundle get and no stage before them gives, by tensor name."""
    manifest = entry.policy.manifest
    inputs = stage_inputs(entry.policy, bench_input.of(entry.policy))
    made = {
        tensor.name for name in manifest.modes[PLAIN] for tensor in manifest.stages[name].outputs
    }
    return {
        name: array
        for stage in manifest.modes[PLAIN]
        for name, array in inputs[stage].items()
        if name not in made
    }


def check_same(peer: Peer, expected: np.ndarray) -> None:
    """BackendError where a peer gives other actions: then times say nothing of each other."""
    got = peer.actions()
    if got.shape != expected.shape:
        raise BackendError(
            f"peer '{peer.name}': expected actions {list(expected.shape)}, got {list(got.shape)}"
        )
    worst = float(np.abs(got - expected).max())
    if not worst <= TOLERANCE:
        raise BackendError(
            f"peer '{peer.name}': expected the bundle's actions within {TOLERANCE:g}, got"
            f" {worst:.2g} apart"
        )
