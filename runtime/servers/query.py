"""A client's query to a policy: the observation keys of LeRobot, openpi, GR00T and vla-eval,
normalised once.

Everything here takes what somebody sent and gives one typed `Query`, or an ObservationError that
names the field, what was expected and what came. Only the values that are used are read: a map may
unpack them when that happens, and raise WireError. Knows keys and shapes; not sockets, and not what
the policy is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimvla.runtime.bus.messages import SCHEMA_VERSION
from trimvla.runtime.errors import ObservationError
from trimvla.runtime.image_codec import MAX_PIXELS
from trimvla.runtime.preprocess.observation import ONLY, Observation
from trimvla.runtime.specs import describe

MAX_TEXT = 4096
MAX_STATE = 4096
MAX_NS = 2**63 - 1
MAIN = (
    "image",
    "primary",
    "front",
    "top",
    "agentview",
    "base_0_rgb",
    "exterior_image_1_left",
    "ego_view",
)
"""Names of the image that a policy with one camera looks at, where a client sends several."""


@dataclass(frozen=True, eq=False)
class Query:
    """One question. Times are on the server's monotonic clock, which its answers contain."""

    image: NDArray[np.uint8]
    """RGB uint8[h, w, 3], contiguous; of several, the policy's first camera."""
    instruction: str
    state: NDArray[np.float32] | None = None
    """float32[n], as it came, for policies that read it."""
    state_names: tuple[str, ...] = ()
    """Of its numbers, where the client sends each under a name."""
    seq: int | None = None
    """The client's own number; it comes back with the answer."""
    t_capture_ns: int | None = None
    deadline_ns: int | None = None
    """When the answer is of no use any more."""
    seed: int | None = None
    """Of the noise; the session's own where there is none."""
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """By the policy's names of its cameras, where it looks through several."""

    @property
    def observation(self) -> Observation:
        """What the policy is given."""
        return Observation(
            self.images or {ONLY: self.image}, self.instruction, self.state, self.state_names
        )


def normalise(
    observation: object,
    camera: str = "",
    extra: Mapping[Any, Any] | None = None,
    *,
    cameras: Sequence[str] = (),
) -> Query:
    """An observation in any of the four conventions.

    Args:
        observation: as it was unpacked.
        camera: which image the policy looks at; where it is empty, the policy's own, or for a
            policy whose camera is one of `MAIN` or unknown, the only one or one of `MAIN`.
        extra: where `seq`, `t_capture_ns` and the like stand, if not in the observation.
        cameras: a policy's names of its cameras. Of several, each must be among the images.
    """
    if not isinstance(observation, Mapping):
        raise ObservationError(
            f"expected a map for 'observation', got {type(observation).__name__}"
        )
    form = next((form for form in FORMS if form.fits(observation)), None)
    if form is None:
        keys = ", ".join(sorted(map(_short, observation))[:12]) or "none"
        raise ObservationError(
            f"expected the observation keys of LeRobot, openpi, GR00T or vla-eval, got {keys}"
        )
    source, names = form.pictures(observation)
    names |= {n: f"observation/{n}" for n in cameras if f"observation/{n}" in observation}
    if len(cameras) > 1:
        chosen = _choose_all(names, cameras, source)
    else:
        chosen = [_choose(names, camera or _own(names, cameras))]
    optional = {
        key: _number(extra or observation, key)
        for key in ("seq", "t_capture_ns", "deadline_ns", "seed")
    }
    version = _number(extra or observation, "schema_version")
    if version not in (None, SCHEMA_VERSION):
        raise ObservationError(f"expected {SCHEMA_VERSION} for 'schema_version', got {version}")
    instruction = _sentence(*form.instruction(observation))
    state, state_names = form.state(observation)
    # last: they cost most
    images = {name: _picture(name, source[names[name]], form) for name in chosen}
    several = images if len(cameras) > 1 else {}
    return Query(images[chosen[0]], instruction, state, state_names, images=several, **optional)


State = tuple[NDArray[np.float32] | None, tuple[str, ...]]
"""The numbers, and their names where each has one."""
Pictures = tuple[Mapping[Any, Any], dict[str, str]]
"""A map that holds images, and by an image's name its key there."""


@dataclass(frozen=True)
class Form:
    """One convention: how it is recognised and where its parts are."""

    name: str
    fits: Callable[[Mapping[Any, Any]], bool]
    pictures: Callable[[Mapping[Any, Any]], Pictures]
    instruction: Callable[[Mapping[Any, Any]], tuple[str, object]]
    """Its key, and what stands there."""
    state: Callable[[Mapping[Any, Any]], State]
    batched: bool = False
    """Images are uint8[1, t, h, w, 3]: the newest counts."""


def _under(prefix: str, *more: str) -> Callable[[Mapping[Any, Any]], Pictures]:
    """Entries whose key starts with `prefix` and contains 'image'; their names are without it and
    the further ones.
    """

    def pictures(observation: Mapping[Any, Any]) -> Pictures:
        keys = [
            key
            for key in observation
            if isinstance(key, str) and key.startswith(prefix) and "image" in key
        ]
        names: dict[str, str] = {}
        for key in keys:
            name = key.removeprefix(prefix)
            for further in more:
                name = name.removeprefix(further)
            names[name] = key
        return observation, names

    return pictures


def _inside(key: str) -> Callable[[Mapping[Any, Any]], Pictures]:
    """All entries of the map under this key."""

    def pictures(observation: Mapping[Any, Any]) -> Pictures:
        inner = observation.get(key)
        if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
            raise ObservationError(f"expected a map of images for '{key}', got {briefly(inner)}")
        return inner, {name: name for name in inner}

    return pictures


def _first(*keys: str) -> Callable[[Mapping[Any, Any]], tuple[str, object]]:
    def find(observation: Mapping[Any, Any]) -> tuple[str, object]:
        return next(
            ((key, observation[key]) for key in keys if key in observation), (keys[0], None)
        )

    return find


def _language(observation: Mapping[Any, Any]) -> tuple[str, object]:
    """GR00T's instruction: `{"language": {key: [[instruction]]}}`."""
    inner = observation.get("language")
    if not isinstance(inner, Mapping) or not inner:
        raise ObservationError(
            f"expected a map with an instruction for 'language', got {briefly(inner)}"
        )
    key, value = next(iter(inner.items()))
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return f"language.{_short(key)}", value


def _vector(*keys: str) -> Callable[[Mapping[Any, Any]], State]:
    def read(observation: Mapping[Any, Any]) -> State:
        key, value = _first(*keys)(observation)
        return None if value is None else _numbers(key, value), ()

    return read


def _states(observation: Mapping[Any, Any]) -> State:
    """GR00T's `{"state": {key: float[1, t, d]}}`: the newest of each, one after the other; parts of
    one number each name it.
    """
    inner = observation.get("state")
    if inner is None:
        return None, ()
    if not isinstance(inner, Mapping):
        raise ObservationError(f"expected a map of arrays for 'state', got {briefly(inner)}")
    newest: list[NDArray[np.float32]] = []
    for key, value in inner.items():
        name = f"state.{_short(key)}"
        if (
            not isinstance(value, np.ndarray)
            or value.ndim != 3
            or value.shape[0] != 1
            or not value.shape[1]
        ):
            raise ObservationError(f"expected float32[1, t, d] for '{name}', got {briefly(value)}")
        newest.append(_numbers(name, value[0, -1]))
        if sum(map(len, newest)) > MAX_STATE:
            raise ObservationError(f"expected at most {MAX_STATE} numbers for 'state', got more")
    named = len(newest) > 1 and all(len(part) == 1 for part in newest)
    names = tuple(map(str, inner)) if named else ()
    return np.concatenate(newest) if newest else None, names


FORMS = (
    Form("GR00T", lambda o: "video" in o, _inside("video"), _language, _states, batched=True),
    Form(
        "vla-eval",
        lambda o: "images" in o,
        _inside("images"),
        _first("task_description", "prompt", "task"),
        _vector("states", "state"),
    ),
    Form(
        "LeRobot",
        lambda o: any(isinstance(key, str) and key.startswith("observation.") for key in o),
        _under("observation.", "images."),
        _first("task"),
        _vector("observation.state"),
    ),
    Form(
        "openpi",
        lambda o: any(isinstance(key, str) and key.startswith("observation/") for key in o),
        _under("observation/"),
        _first("prompt"),
        _vector("observation/state"),
    ),
)


def _own(pictures: Mapping[str, str], cameras: Sequence[str]) -> str:
    """The camera that a policy with one looks through, where a client must send it by its name."""
    own = cameras[0] if len(cameras) == 1 else ""
    return own if own in pictures or own not in MAIN else ""


def _choose(pictures: Mapping[str, str], camera: str) -> str:
    """The name of the image that the policy looks at."""
    if camera in pictures:
        return camera
    names = sorted(map(_short, pictures))[:12]
    if camera:
        raise ObservationError(f"expected an image of the camera '{camera}', got {names}")
    main = [name for name in MAIN if name in pictures]
    if len(pictures) != 1 and not main:
        raise ObservationError(f"expected one image, or one called {', '.join(MAIN)}, got {names}")
    return main[0] if main else next(iter(pictures))


def _choose_all(
    pictures: Mapping[str, str], cameras: Sequence[str], source: Mapping[Any, Any]
) -> list[str]:
    """The policy's cameras, where an image of each has come; others are not looked at."""
    missing = [name for name in cameras if name not in pictures]
    if missing:
        got = sorted(map(_short, pictures))[:12]
        known = set(pictures.values())
        others = sorted(_short(key) for key in source if key not in known)[:12]
        beside = f" beside {others}" if others else ""
        raise ObservationError(
            f"expected images of the cameras {list(cameras)}, got {got}{beside}: missing {missing}"
        )
    return list(cameras)


def _picture(name: str, value: object, form: Form) -> NDArray[np.uint8]:
    where = f"'{_short(name)}'"
    expected = "uint8[1, t, h, w, 3]" if form.batched else "uint8[h, w, 3]"
    axes = 5 if form.batched else 3
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != np.uint8
        or value.ndim != axes
        or value.shape[-1] != 3
    ):
        raise ObservationError(f"expected {expected} for {where}, got {briefly(value)}")
    if not value.size or (form.batched and value.shape[0] != 1):
        raise ObservationError(f"expected {expected} for {where}, got {briefly(value)}")
    image = value[0, -1] if form.batched else value
    if math.prod(image.shape[:2]) > MAX_PIXELS:
        raise ObservationError(
            f"expected at most {MAX_PIXELS} pixels for {where}, got {briefly(image)}"
        )
    return np.ascontiguousarray(image)


def _sentence(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ObservationError(f"expected an instruction for '{key}', got {briefly(value)}")
    if len(value) > MAX_TEXT:
        raise ObservationError(
            f"expected at most {MAX_TEXT} characters for '{key}', got {len(value)}"
        )
    return value


def _numbers(key: str, value: object) -> NDArray[np.float32]:
    """A finite vector, from an array or a list of numbers."""
    if isinstance(value, list) and all(type(item) in (int, float) for item in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "fiu":
        raise ObservationError(f"expected float32[n] for '{key}', got {briefly(value)}")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = value[: MAX_STATE + 1].astype(np.float32)
    if len(value) > MAX_STATE or not np.isfinite(numbers).all():
        raise ObservationError(
            f"expected at most {MAX_STATE} finite numbers for '{key}', got {briefly(value)}"
        )
    return numbers


def _number(source: Mapping[Any, Any], key: str) -> int | None:
    value = source.get(key)
    if value is not None and not (type(value) is int and 0 <= value <= MAX_NS):
        raise ObservationError(
            f"expected an integer from 0 to 2^63 - 1 for '{key}', got {briefly(value)}"
        )
    return value


def briefly(value: object) -> str:
    """What came, briefly."""
    if isinstance(value, np.ndarray):
        return describe(value.dtype, value.shape)
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, Mapping):
        return "a map"
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__


def _short(key: object) -> str:
    return str(key)[:64]
