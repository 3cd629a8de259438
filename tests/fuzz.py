"""Fuzzing of every decoder that meets bytes from outside: `python -m tests.fuzz --messages
1000000`.

Valid messages of every kind are mutated (tests/mutate.py) and decoded. A decoder may accept, or
raise the error that it declares. Anything else is a crash; a message that takes longer than
`SLOW_S` is a hang; resident memory must not grow. The last line is one JSON object; the exit status
is 0 only where nothing was found.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import faulthandler
import gc
import io
import json
import logging
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from tests.mutate import Parts, encode_json, encode_msgpack, mutate_bytes, mutate_value
from tests.tiny_bundle import manifest as tiny_manifest
from trimvla.runtime.bundle.manifest import FileSpec, parse
from trimvla.runtime.bundle.plan import Plan, TokenPlan, parse_plan
from trimvla.runtime.bus.messages import (
    ActionChunk,
    Command,
    Deadman,
    Episode,
    EStop,
    Frame,
    Health,
    JointState,
    Message,
    Operator,
    Refusal,
    Report,
    SimState,
    Summary,
    Task,
)
from trimvla.runtime.bus.network import stamp, to_local_clock
from trimvla.runtime.bus.topics import topic
from trimvla.runtime.bus.wire import decode, decode_header, encode
from trimvla.runtime.cameras import lerobot
from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble
from trimvla.runtime.errors import (
    BundleError,
    BusyError,
    ConfigError,
    ObservationError,
    TrimvlaError,
    WireError,
)
from trimvla.runtime.servers import groot_protocol as groot
from trimvla.runtime.servers.packing import Form, pack
from trimvla.runtime.servers.sessions import Session
from trimvla.runtime.servers.websocket_protocols import Openpi, VlaEval

SLOW_S = 1.0
GROWTH_MIB = 24.0
HANG_S = 30
PAGE_MIB = 4096 / 2**20


@dataclass(frozen=True)
class Target:
    """One decoder, valid messages for it, and the errors that it declares."""

    name: str
    seeds: list[Parts]
    decode: Callable[[Parts], object]
    errors: tuple[type[TrimvlaError], ...]
    structure: tuple[Callable[[bytes], Any], Callable[[Any], bytes]] | None = None
    """How the last part is read and written, so that its values can be mutated too."""
    part: int = -1
    """Which part has that structure."""


@dataclass
class Findings:
    """What came of it."""

    messages: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashes: list[dict[str, str]] = field(default_factory=list)
    slowest_ms: dict[str, float] = field(default_factory=dict)
    rss_mib: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth_mib(self) -> float:
        """Between the first tenth, when every cache is warm, and the end."""
        return round(self.rss_mib[-1] - self.rss_mib[0], 1)

    @property
    def ok(self) -> bool:
        hang = max(self.slowest_ms.values()) > SLOW_S * 1e3
        return not self.crashes and not hang and self.growth_mib <= GROWTH_MIB

    def summary(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "messages": self.messages,
            "accepted": sum(self.accepted.values()),
            "refused": sum(self.refused.values()),
            "crashes": self.crashes[:20],
            "slowest_ms": {name: round(ms, 2) for name, ms in sorted(self.slowest_ms.items())},
            "rss_mib": [round(value, 1) for value in self.rss_mib],
            "growth_mib": self.growth_mib,
            "by_target": {
                name: [self.accepted[name], self.refused[name]] for name in sorted(self.slowest_ms)
            },
            "seconds": round(self.seconds, 1),
        }


def fuzz(targets: list[Target], messages: int, seed: int = 0) -> Findings:
    """Mutate and decode so many messages, of every target in turn."""
    rng = random.Random(seed)
    found = Findings()
    start = time.monotonic()
    warm = max(1, messages // 10)
    for number in range(messages):
        if number % 2000 == 0:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        if number == warm:
            found.rss_mib.append(resident_mib())
        target = targets[number % len(targets)]
        _one(target, mutated(rng, target), found)
    faulthandler.cancel_dump_traceback_later()
    found.rss_mib.append(resident_mib())
    found.seconds = time.monotonic() - start
    return found


def _one(target: Target, parts: Parts, found: Findings) -> None:
    began = time.perf_counter()
    try:
        target.decode(parts)
        found.accepted[target.name] += 1
    except target.errors:
        found.refused[target.name] += 1
    except Exception as error:
        what = {"target": target.name, "error": f"{type(error).__name__}: {error}"[:300]}
        found.crashes.append({**what, "parts": repr([part[:2000] for part in parts])})
    took_ms = (time.perf_counter() - began) * 1e3
    found.slowest_ms[target.name] = max(took_ms, found.slowest_ms.get(target.name, 0.0))
    found.messages += 1


def mutated(rng: random.Random, target: Target) -> Parts:
    """One message that was valid."""
    parts = list(rng.choice(target.seeds))
    if target.structure is not None and rng.random() < 0.5:
        read, write = target.structure
        with contextlib.suppress(OverflowError, RecursionError, UnicodeEncodeError):
            parts[target.part] = write(mutate_value(rng, read(parts[target.part])))
            return parts
    place = rng.randrange(len(parts))
    other = rng.choice(rng.choice(target.seeds))
    parts[place] = mutate_bytes(rng, parts[place], other)
    if len(parts) > 1 and rng.random() < 0.02:
        rng.choice((parts.reverse, parts.pop, lambda: parts.append(b"")))()
    return parts


def resident_mib() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_MIB


# Targets

PICTURE = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
MESSAGES: dict[str, Message] = {
    "task": Task(
        time_ns=1,
        episode=1,
        instruction="pick up the red cube",
        started_ns=1,
        options={"variant": [1, 2.5]},
    ),
    "robot/state": JointState(time_ns=1, position=(0.0, 1.5), gripper=1.0),
    "sim/state": SimState(
        time_ns=1, episode=1, step=0, scene={"items": [{"x": 0.5}]}, qpos=(0.0, 1.5)
    ),
    "chunk": ActionChunk(
        time_ns=5,
        episode=1,
        actions=((0.1, -0.2), (0.3, 0.4)),
        control_hz=5.0,
        valid_rows=2,
        produced_ns=9,
        frame_sequence=7,
        seed=(0, 7),
    ),
    "refusal": Refusal(time_ns=1, episode=1, kind="stale", reason="too old", since_ns=1),
    "estop": EStop(time_ns=1, pressed=True, source="wall"),
    "deadman": Deadman(time_ns=1, held=True),
    "operator": Operator(time_ns=1, request="arm"),
    "health": Health(time_ns=1, ok=False, reason="process 'policy' ended"),
    "command": Command(
        time_ns=8, episode=1, kind="action", action=(0.1, 1.0), captured_ns=5, row=0
    ),
    "episode": Episode(time_ns=1, episode=1, instruction="go", step=3, done=False, success=False),
    "policy/report": Report(
        time_ns=1, process="policy", state="running", latencies={"a": Summary(1, 1.0, 2.0, 3.0)}
    ),
}
MSGPACK = (msgspec.msgpack.decode, encode_msgpack)
JSON = (msgspec.json.decode, encode_json)


def all_targets() -> list[Target]:
    """Every decoder."""
    return [*_topics(), *_frames(), *_clients(), *_files()]


def _topics() -> list[Target]:
    found = []
    for name, message in MESSAGES.items():
        source = topic(name)
        parts = encode(topic(name), message)
        found.append(
            Target(
                f"topic {name}", [parts], lambda p, s=source: decode(s, p), (WireError,), MSGPACK
            )
        )
    # Sent now, not at 1 ns: a wall clock corrected by less than that in between would move it below
    # zero.
    now = time.monotonic_ns()
    sent = msgspec.structs.replace(MESSAGES["task"], time_ns=now, started_ns=now)
    task = [*encode(topic("task"), sent), stamp()]
    there = Target(
        "a task from another host", [task], lambda p: _arrive("task", p), (WireError,), MSGPACK, 1
    )
    return [*found, there]


def _arrive(name: str, parts: Parts) -> object:
    return decode(topic(name), to_local_clock(topic(name), parts))


def _frames() -> list[Target]:
    front = topic("front/color")
    frame = Frame("front", 11, PICTURE, sequence=4, utc_ns=time.time_ns())
    seeds = [encode(front, frame, codec) for codec in ("raw_bgr8", "raw_rgb8", "jpeg", "png")]
    return [
        Target("frame", seeds, lambda p: decode(front, p), (WireError,), JSON, 1),
        Target("frame header", seeds, lambda p: decode_header(front, p), (WireError,), JSON, 1),
        Target(
            "a frame from another host",
            seeds,
            lambda p: _arrive("front/color", p),
            (WireError,),
            JSON,
            1,
        ),
        Target(
            "LeRobot's images",
            [[_lerobot()]],
            lambda p: lerobot.decode(p[0], "front"),
            (WireError,),
            JSON,
        ),
    ]


def _lerobot() -> bytes:
    return json.dumps(
        {"timestamps": {"front": 1.5}, "images": {"front": base64.b64encode(_jpeg()).decode()}}
    ).encode()


def _jpeg() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PICTURE).save(sink, "jpeg")
    return sink.getvalue()


STATE = np.zeros(8, np.float32)
OBSERVATIONS: dict[str, dict[str, Any]] = {
    "LeRobot": {
        "observation.images.front": PICTURE,
        "observation.state": STATE,
        "task": "pick up the red cube",
    },
    "openpi": {
        "observation/image": PICTURE,
        "observation/state": STATE,
        "prompt": "pick up the red cube",
        "seq": 3,
    },
    "vla-eval": {
        "images": {"primary": PICTURE},
        "task_description": "pick up the red cube",
        "states": STATE,
    },
    "GR00T": {
        "video": {"front": PICTURE[None, None]},
        "state": {"arm": STATE[None, None]},
        "language": {"task": [["pick up the red cube"]]},
    },
}


def _clients() -> list[Target]:
    metadata = {"server": "trimvla", "policy": "tiny", "action_dim": 7}
    openpi = Openpi(metadata)
    vla_eval = VlaEval(metadata)
    session = Session("fuzz", AdaptiveEnsemble(1))
    errors = (WireError, ObservationError)
    seen = list(OBSERVATIONS.values())
    return [
        Target("GR00T's requests", _requests(), lambda p: groot.parse(p[0]), errors, MSGPACK),
        Target(
            "openpi's observations",
            _packed(seen, "openpi"),
            lambda p: openpi.receive(p[0], session),
            errors,
            MSGPACK,
        ),
        Target(
            "vla-eval's envelopes",
            [
                *_packed([_envelope(kind, load) for kind, load in _payloads()], "vla-eval"),
                [_with_png()],
            ],
            lambda p: vla_eval.receive(p[0], session),
            (*errors, BusyError),
            MSGPACK,
        ),
    ]


def _packed(values: list[dict[str, Any]], form: Form) -> list[Parts]:
    return [[pack(value, form)] for value in values]


def _requests() -> list[Parts]:
    observations = [
        {"endpoint": "get_action", "data": {"observation": o, "options": None}}
        for o in OBSERVATIONS.values()
    ]
    timed = {
        **observations[-1],
        "seq": 3,
        "t_capture_ns": 1,
        "deadline_ns": 2,
        "schema_version": 1,
        "api_token": "x",
    }
    reset = {"endpoint": "reset", "data": {"options": {"seed": 7}}}
    return _packed(
        [*observations, timed, reset, {"endpoint": "ping"}, {"endpoint": "get_modality_config"}],
        "groot",
    )


def _payloads() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("hello", {"harness_version": "0.8.0", "protocol_version": 1}),
        ("episode_start", {"task": {"name": "t", "seed": 3}}),
        ("observation", OBSERVATIONS["vla-eval"]),
        ("episode_end", {"success": True}),
    ]


def _envelope(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "payload": payload, "seq": 1, "timestamp": 1.5}


def _with_png() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PICTURE).save(sink, "png")
    picture = {"__image__": True, "format": "png", "data": sink.getvalue(), "shape": [6, 8, 3]}
    return encode_msgpack(
        _envelope("observation", {"images": {"primary": picture}, "task_description": "go"})
    )


def _files() -> list[Target]:
    complete = msgspec.structs.replace(
        tiny_manifest(),
        files={
            name: FileSpec("0" * 64, 1)
            for name in ("statistics.json", "tokenizer.json", *_graphs())
        },
    )
    plan = Plan(
        layers=(0, 2),
        channels=("ff", "0f"),
        tokens=TokenPlan(keep=56, after=1),
        recompute=(0, 3),
        steps=6,
    )
    where = Path("fuzz.json")
    manifests = [[msgspec.json.encode(complete)]]
    plans = [[msgspec.json.encode(plan)]]
    return [
        Target("manifest", manifests, lambda p: parse(p[0], where), (BundleError,), JSON),
        Target("plan", plans, lambda p: parse_plan(p[0], where), (ConfigError,), JSON),
    ]


def _graphs() -> list[str]:
    return [stage.file for stage in tiny_manifest().stages.values()]


def main() -> int:
    """Fuzz and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable()
    # numpy's header parser and Pillow comment on what they are given
    warnings.simplefilter("ignore")
    found = fuzz(all_targets(), args.messages, args.seed)
    print(json.dumps(found.summary()))
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
