"""How long a policy thinks, in simulated time: a constant, a distribution, or the trace of another
device.

Draws are the same for the same seed on every machine. Only `wall` is not: it takes as long as this
machine takes. Knows numbers; knows no policy, no device and no episode.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np

from trimvla.runtime.errors import ConfigError

Kind = Literal["constant", "lognormal", "trace", "wall"]
WAYS = "milliseconds, lognormal:MEDIAN,SIGMA, wall, or a .json file with a list of milliseconds"


@dataclass(frozen=True)
class Latency:
    """From the image to the chunk [ms].

    `values`: the constant; median and sigma of the logarithm; or the trace.
    """

    name: str
    kind: Kind
    values: tuple[float, ...] = ()

    def draws(self, seed: int) -> Iterator[float]:
        """Endless milliseconds of one episode; a trace goes on from a place that the seed decides,
        in its order.
        """
        rng = np.random.default_rng((seed, len(self.values)))
        if self.kind == "lognormal":
            median, sigma = self.values
            while True:
                yield median * math.exp(sigma * rng.standard_normal())
        yield from islice(cycle(self.values), int(rng.integers(len(self.values))), None)

    @property
    def mean_ms(self) -> float | None:
        """What it costs on average; None where only the run itself shows it."""
        if self.kind == "wall":
            return None
        if self.kind == "lognormal":
            return self.values[0] * math.exp(self.values[1] ** 2 / 2)
        return sum(self.values) / len(self.values)


def split(text: str) -> list[str]:
    """`0,100,lognormal:150,0.2` -> its three parts."""
    return re.findall(r"lognormal:[^,]*,[^,]*|[^,]+", text)


def parse(text: str) -> Latency:
    """One part of `--latency`.

    Raises:
        ConfigError: none of `WAYS`, or numbers that no latency has.
    """
    if text == "wall":
        return Latency(text, "wall")
    if text.endswith(".json"):
        return Latency(text, "trace", read_trace(Path(text)))
    kind, _, rest = text.rpartition(":")
    if kind not in ("", "lognormal"):
        raise ConfigError(f"expected {WAYS}, got {text!r} for 'latency'")
    numbers = _numbers(rest.split(","), text)
    if kind == "" and len(numbers) == 1:
        return constant(text, numbers[0])
    if kind == "lognormal" and len(numbers) == 2:
        return Latency(text, "lognormal", numbers)
    raise ConfigError(f"expected {WAYS}, got {text!r} for 'latency'")


def constant(name: str, ms: float) -> Latency:
    """Always as long."""
    return Latency(name, "constant", (ms,))


def read_trace(path: Path) -> tuple[float, ...]:
    """A list of milliseconds, or an object with one such list (`trimvla bench --samples`: the row
    of L2).
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a list of milliseconds, got: {error}") from None
    if isinstance(content, Mapping):
        rows = [
            values
            for name, values in content.items()
            if len(content) == 1 or name.endswith("L2 total")
        ]
        content = rows[0] if rows else []
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise ConfigError(f"{path}: expected a list of milliseconds, got none")
    return _numbers(content, str(path))


def _numbers(values: Sequence[object], source: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(str(value)) for value in values)
    except ValueError:
        raise ConfigError(f"expected {WAYS}, got {source!r} for 'latency'") from None
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ConfigError(f"expected finite numbers of at least 0, got {source!r} for 'latency'")
    return numbers
