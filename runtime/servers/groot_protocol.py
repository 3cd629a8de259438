"""GR00T's policy protocol: what its client sends and what it expects.

Pure: knows frames; not sockets.

A request is one msgpack map `{"endpoint", "data", "api_token"}`; errors come back as `{"error":
text}`. The token is looked at before anything else is unpacked, then the endpoint, then what that
endpoint needs. There is no endpoint that ends the server.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from trimvla.runtime.errors import WireError
from trimvla.runtime.servers.packing import LazyMap, open_map, pack
from trimvla.runtime.servers.query import Query, briefly, normalise
from trimvla.runtime.servers.service import Answer
from trimvla.runtime.servers.tokens import is_same

Endpoint = Literal["ping", "get_action", "reset", "get_modality_config"]
ACTIONS = "actions"  # the one key of an answer


@dataclass(frozen=True, eq=False)
class Request:
    """One request, checked."""

    endpoint: Endpoint
    query: Query | None = None
    """For `get_action`."""
    seed: int | None = None
    """For `reset`: of the next episode's noise."""


def parse(raw: bytes, camera: str = "", token: str = "", *, cameras: Sequence[str] = ()) -> Request:
    """A request.

    Raises WireError for what is none or has another token, ObservationError for its contents.
    """
    message = open_map(raw)
    check_token(message, token)
    endpoint = message.plain("endpoint", str, "get_action")
    if endpoint not in get_args(Endpoint):
        raise WireError(
            f"expected one of {', '.join(get_args(Endpoint))} for 'endpoint', got {endpoint[:40]!r}"
        )
    if endpoint == "get_action":
        observation = _inner(message.get("data"), "data").get("observation")
        return Request(
            endpoint, normalise(observation, camera, _extra(message, observation), cameras=cameras)
        )
    if endpoint == "reset":
        return Request(endpoint, seed=_seed(message.get("data")))
    return Request(cast("Endpoint", endpoint))


def check_token(message: LazyMap, token: str) -> None:
    """Raise WireError unless no token is asked for, or this one is shown."""
    if token and not is_same(message.plain("api_token", str, ""), token):
        raise WireError("expected the server's token, got another or none")


def _extra(message: Mapping[Any, Any], observation: object) -> Mapping[Any, Any]:
    """`seq` and its kind stand in the request, or in the observation."""
    inner = observation if isinstance(observation, Mapping) else {}
    return ChainMap(message, inner)  # type: ignore[arg-type]  # it is read only


def _inner(data: object, name: str) -> Mapping[Any, Any]:
    if not isinstance(data, Mapping):
        raise WireError(f"expected a map for '{name}', got {briefly(data)}")
    return data


def _seed(data: object) -> int | None:
    """Of `{"options": {"seed": 7}}`; options are optional."""
    options = _inner({} if data is None else data, "data").get("options")
    seed = _inner({} if options is None else options, "options").get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**63):
        raise WireError(f"expected an integer from 0 to 2^63 - 1 for 'seed', got {briefly(seed)}")
    return seed


def reply(content: Mapping[str, Any] | list[Any]) -> bytes:
    """Any answer."""
    return pack(content, "groot")


def action_reply(answer: Answer, metadata: Mapping[str, Any]) -> bytes:
    """`({"actions": float32[1, H, D]}, info)`."""
    return reply(
        [{ACTIONS: np.ascontiguousarray(answer.actions[None])}, {**metadata, **answer.info}]
    )


def error_reply(error: Exception) -> bytes:
    """`{"error": text}`."""
    return reply({"error": str(error)})


def modality_config(metadata: Mapping[str, Any], camera: str) -> dict[str, object]:
    """The fields of the client's `ModalityConfig` class, for images, instructions and actions."""
    cameras = metadata["cameras"]
    parts = {
        "video": ([0], list(cameras) if len(cameras) > 1 else [camera or "image"]),
        **({"state": ([0], ["state"])} if metadata["state_dim"] else {}),
        "language": ([0], ["task"]),
        "action": (list(range(metadata["horizon"])), [ACTIONS]),
    }
    return {
        name: {
            "__ModalityConfig_class__": True,
            "as_json": {"delta_indices": deltas, "modality_keys": keys},
        }
        for name, (deltas, keys) in parts.items()
    }
