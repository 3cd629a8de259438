"""A served bundle and its clients: openpi's and vla-eval's real ones, and one written to GR00T's
documented frames.

Every client looks at the same image; all must get the actions that the bundle gives when it is
asked directly.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zmq

from tests.groot_client import GrootClient
from tests.tiny_bundle import write_bundle
from trimvla.launch import cli
from trimvla.runtime.bus import curve
from trimvla.runtime.chunks.ensemble import AdaptiveEnsemble
from trimvla.runtime.clock import monotonic_ns
from trimvla.runtime.errors import BusyError, ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.preprocess.observation import Observation
from trimvla.runtime.servers.groot_server import GrootServer
from trimvla.runtime.servers.packing import pack, unpack
from trimvla.runtime.servers.query import Query
from trimvla.runtime.servers.service import Place, Service, ServiceConfig
from trimvla.runtime.servers.websocket_protocols import Openpi, VlaEval
from trimvla.runtime.servers.websocket_server import WebsocketServer

IMAGE = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 255, (32, 40, 3), np.uint8)
TASK = "pick up the red cube"
OPENPI = {"observation/image": IMAGE, "observation/state": np.zeros(8), "prompt": TASK}
VLA_EVAL = {
    "images": {"primary": IMAGE},
    "task_description": TASK,
    "states": np.zeros(8, np.float32),
}
GROOT = {
    "video": {"front": IMAGE[None, None]},
    "state": {"arm": np.zeros((1, 1, 7), np.float32)},
    "language": {"task": [[TASK]]},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policy]:
    policy = Policy.load(write_bundle(tmp_path_factory.mktemp("bundle")), threads=1)
    yield policy
    policy.close()


class Served:
    """A service and its servers at free ports of this host."""

    def __init__(self, policy: Policy, votes: int = 1, token: str = "") -> None:
        self._stack = ExitStack()
        try:
            self.service = self._stack.enter_context(Service(policy, ServiceConfig(votes=votes)))
            groot = GrootServer(self.service, "tcp://127.0.0.1:*", token=token)
            self._stack.callback(groot.close)
            self.groot = groot.endpoint
            openpi = partial(Openpi, self.service.metadata)
            vla_eval = partial(VlaEval, self.service.metadata)
            self.openpi = self._websocket(openpi, token)
            self.vla_eval = self._websocket(vla_eval, token)
        except BaseException:
            self._stack.close()
            raise

    def _websocket(self, converse: Callable[[], Any], token: str) -> int:
        server = WebsocketServer(self.service, Place(port=0, token=token), converse)
        self._stack.callback(server.close)
        return server.port

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture
def served(policy: Policy) -> Iterator[Served]:
    with Served(policy) as served:
        yield served


class Gated:
    """A policy that waits for a gate: the bundle's own answers, when the test lets them through."""

    def __init__(self, policy: Policy) -> None:
        self.manifest = policy.manifest
        self._policy = policy
        self.gate = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.order: list[str] = []

    def infer(self, observation: Observation, *, seed: tuple[int, ...]) -> Any:
        self.asked.release()
        assert self.gate.acquire(timeout=20)
        self.order.append(observation.instruction)
        return self._policy.infer(observation, seed=seed)


def openpi_client(port: int, key: str | None = None) -> Any:
    module = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="openpi-client is not installed"
    )
    return module.WebsocketClientPolicy("127.0.0.1", port, key)


def expected(policy: Policy, seed: tuple[int, ...], image: np.ndarray = IMAGE) -> np.ndarray:
    return policy.infer(image, TASK, seed=seed).actions.astype(np.float32)


def test_openpis_own_client(policy, served):
    client = openpi_client(served.openpi)
    metadata = client.get_server_metadata()
    assert (metadata["horizon"], metadata["action_dim"], metadata["control_hz"]) == (16, 7, 5.0)
    assert metadata["action_kinds"] == ["delta"] * 6 + ["gripper"]
    for step in range(2):
        answer = client.infer(OPENPI)
        assert (
            answer["actions"].dtype == np.float32
            and (answer["actions"] == expected(policy, (0, 0, step))).all()
        )
        assert answer["server_timing"]["infer_ms"] > 0 and (
            answer["server_timing"]["prev_total_ms"] > 0
        ) == bool(step)
    with pytest.raises(
        RuntimeError, match=r"expected uint8\[h, w, 3\] for 'image', got float64\[32, 40, 3\]"
    ):
        client.infer({**OPENPI, "observation/image": IMAGE.astype(float)})
    # it goes on after an error
    assert (client.infer(OPENPI)["actions"] == expected(policy, (0, 0, 2))).all()
    with urllib.request.urlopen(f"http://127.0.0.1:{served.openpi}/healthz") as page:
        assert page.status == 200


def test_vla_evals_own_client(policy, served):
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")

    async def episodes() -> list[Any]:
        async with connection.Connection(f"ws://127.0.0.1:{served.vla_eval}", timeout=20) as conn:
            got: list[Any] = [conn.server_info]
            for _ in range(2):
                await conn.start_episode({"task": {"name": "t"}})
                got += [await conn.act(VLA_EVAL) for _ in range(2)]
                await conn.end_episode({"success": True})
            await conn.start_episode({"task": {"name": "t", "seed": 9}})
            got.append(await conn.act(VLA_EVAL))
            with pytest.raises(
                RuntimeError, match="expected an instruction for 'task_description', got ''"
            ):
                await conn.act({**VLA_EVAL, "task_description": ""})
            return got

    info, *answers = asyncio.run(episodes())
    assert info["protocol_version"] == 1 and info["action_spec"]["actions"]["dims"] == 7
    seeds = [(0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (9, 0)]
    for seed, answer in zip(seeds, answers, strict=True):
        assert (
            answer["actions"].shape == (7,)
            and (answer["actions"] == expected(policy, seed)[0]).all()
        )


def test_an_episode_of_vla_evals_own_runner(policy, served):
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")
    benchmarks = pytest.importorskip("vla_eval.benchmarks.base")
    runner = pytest.importorskip("vla_eval.runners.sync_runner").SyncEpisodeRunner()
    rows: list[np.ndarray] = []

    class Table(benchmarks.StepBenchmark):
        """Three steps on an image that stays the same."""

        def get_tasks(self) -> list[dict[str, Any]]:
            return [{"name": "pick"}]

        def reset(self, task: dict[str, Any]) -> np.ndarray:
            return IMAGE

        def step(self, action: dict[str, Any]) -> Any:
            rows.append(action["actions"])
            return benchmarks.StepResult(IMAGE, 0.0, len(rows) == 3, {})

        def make_obs(self, raw_obs: np.ndarray, task: dict[str, Any]) -> dict[str, Any]:
            return {"images": {"primary": raw_obs}, "task_description": TASK}

        def get_step_result(self, step_result: Any) -> dict[str, Any]:
            return {"success": step_result.done}

    async def episode() -> dict[str, Any]:
        async with connection.Connection(f"ws://127.0.0.1:{served.vla_eval}", timeout=20) as conn:
            return await runner.run_episode(Table(), {"name": "pick"}, conn, max_steps=10)

    result = asyncio.run(episode())
    assert result["steps"] == 3 and result["metrics"] == {"success": True}
    assert np.array_equal(rows, [expected(policy, (0, 1, step))[0] for step in range(3)])


def test_a_client_of_groots_documented_frames(policy, served):
    with GrootClient(served.groot) as client:
        assert client.call("ping")["status"] == "ok"
        config = client.call("get_modality_config")
        assert config["action"]["as_json"]["modality_keys"] == ["actions"]
        action, info = client.get_action(GROOT, seq=41, t_capture_ns=monotonic_ns())
        assert (
            action["actions"].dtype == np.float32
            and (action["actions"] == expected(policy, (0, 0, 0))[None]).all()
        )
        assert info["seq"] == 41 and info["action_kinds"][-1] == "gripper" and info["horizon"] == 16
        assert client.call("reset", {"options": {"seed": 5}}) == {"episode": 1}
        assert (client.get_action(GROOT)[0]["actions"][0] == expected(policy, (5, 0))).all()
        # the newest of two images counts
        two = {**GROOT, "video": {"front": np.stack([IMAGE, OTHER])[None]}}
        assert (client.get_action(two)[0]["actions"][0] == expected(policy, (5, 1), OTHER)).all()
        for wrong, words in (
            ({**GROOT, "video": {"front": IMAGE}}, r"expected uint8\[1, t, h, w, 3\] for 'front'"),
            (
                {**GROOT, "language": {"task": [[7]]}},
                "expected an instruction for 'language.task', got 7",
            ),
            (
                {**GROOT, "state": {"arm": np.full((1, 1, 7), np.nan)}},
                "finite numbers for 'state.arm'",
            ),
        ):
            with pytest.raises(RuntimeError, match=words):
                client.get_action(wrong)
        with pytest.raises(RuntimeError, match=r"expected one of ping, get_action, .* got 'kill'"):
            client.call("kill")


def test_every_convention_is_understood_by_every_server(policy, served):
    lerobot = {
        "observation.images.front": IMAGE,
        "observation.state": np.zeros(6, np.float32),
        "task": TASK,
    }
    client = openpi_client(served.openpi)
    for step, observation in enumerate((OPENPI, VLA_EVAL, GROOT, lerobot)):
        assert (client.infer(observation)["actions"] == expected(policy, (0, 0, step))).all()
    with GrootClient(served.groot) as groot:
        for step, observation in enumerate((OPENPI, VLA_EVAL, GROOT, lerobot)):
            assert (
                groot.get_action(observation)[0]["actions"][0] == expected(policy, (0, 0, step))
            ).all()


def test_an_observation_past_its_deadline_or_too_old_is_refused(served):
    with GrootClient(served.groot) as client:
        now = client.call("ping")["monotonic_ns"]
        assert abs(now - monotonic_ns()) < 10e9
        for extra, words in (
            ({"deadline_ns": now - 1}, "expected a 'deadline_ns' to come"),
            (
                {"t_capture_ns": now - 2 * 10**9},
                "expected at most 500 ms of age by 't_capture_ns', got 2",
            ),
            ({"t_capture_ns": now + 60 * 10**9}, "expected a past 't_capture_ns'"),
            (
                {"t_capture_ns": "now"},
                "expected an integer from 0 to .* for 't_capture_ns', got 'now'",
            ),
            ({"schema_version": 2}, "expected 1 for 'schema_version', got 2"),
        ):
            with pytest.raises(RuntimeError, match=words):
                client.get_action(GROOT, **extra)
        assert (
            client.get_action(GROOT, deadline_ns=monotonic_ns() + 20 * 10**9)[1]["step"] == 0
        )  # refusals count for nothing


def test_concurrent_sessions_do_not_mix(policy):
    """Each of four clients, two at each server, gets what it would get alone: noise, episode, step
    and votes.
    """
    sync = pytest.importorskip("websockets.sync.client")
    got: dict[int, list[np.ndarray]] = {}

    def groot(number: int, image: np.ndarray) -> None:
        with GrootClient(served.groot) as client:
            observation = {**GROOT, "video": {"front": image[None, None]}}
            got[number] = [client.get_action(observation)[0]["actions"][0] for _ in range(STEPS)]

    def vla_eval(number: int, image: np.ndarray) -> None:
        with sync.connect(f"ws://127.0.0.1:{served.vla_eval}") as client:
            got[number] = []
            for seq in range(STEPS):
                payload = {**VLA_EVAL, "images": {"primary": image}}
                client.send(
                    pack(
                        {"type": "observation", "payload": payload, "seq": seq, "timestamp": 0.0},
                        "vla-eval",
                    )
                )
                got[number].append(unpack(client.recv(20))["payload"]["actions"])

    clients = [(groot, IMAGE), (vla_eval, IMAGE), (groot, OTHER), (vla_eval, OTHER)]
    with Served(policy, votes=3) as served:
        threads = [
            Thread(target=run, args=(number, image)) for number, (run, image) in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, (run, image) in enumerate(clients):
        chunks = [expected(policy, (0, 0, step), image) for step in range(STEPS)]
        assert np.array_equal(got[number], chunks if run is groot else voted(policy, image))
    assert not np.array_equal(got[1], got[3])


STEPS = 6


def voted(policy: Policy, image: np.ndarray) -> list[np.ndarray]:
    """The rows of a session with three votes and nobody else."""
    ensemble = AdaptiveEnsemble(3)
    chunks = [policy.infer(image, TASK, seed=(0, 0, step)).actions for step in range(STEPS)]
    return [ensemble.step(chunk).astype(np.float32) for chunk in chunks]


def test_the_queue_is_fair_and_bounded_and_a_session_has_one_question(policy):
    gated = Gated(policy)
    with Service(gated, ServiceConfig(max_waiting=2)) as service:  # type: ignore[arg-type]
        greedy, modest, third, fourth = (service.sessions.of(name) for name in "abcd")
        first = service.ask(greedy, Query(IMAGE, "red"))
        assert gated.asked.acquire(timeout=20)
        with pytest.raises(BusyError, match="one question at a time"):
            service.ask(greedy, Query(IMAGE, "red"))
        with pytest.raises(BusyError, match="expected a reset between two questions"):
            greedy.reset()
        waiting = [
            service.ask(modest, Query(IMAGE, "blue")),
            service.ask(third, Query(IMAGE, "green")),
        ]
        with pytest.raises(BusyError, match="at most 2 waiting questions"):
            service.ask(fourth, Query(IMAGE, "cube"))
        gated.gate.release()
        first.result(20)
        again = service.ask(greedy, Query(IMAGE, "stack"))  # behind those who waited
        gated.gate.release(3)
        for future in (*waiting, again):
            future.result(20)
    assert gated.order == ["red", "blue", "green", "stack"]


def test_idle_sessions_expire_and_the_longest_idle_leaves_for_another(policy):
    with Service(policy, ServiceConfig(max_sessions=2, idle_s=0.2)) as service:
        first = service.sessions.of("a")
        second = service.sessions.of("b")
        third = service.sessions.of("c")
        assert service.sessions.of("b") is second and service.sessions.of("c") is third
        assert service.sessions.of("a") is not first and len(service.sessions) == 2
        time.sleep(0.3)
        assert service.sessions.of("c") is not third and len(service.sessions) == 1


def test_a_session_in_use_is_never_forgotten(policy):
    gated = Gated(policy)
    with Service(gated, ServiceConfig(max_sessions=2)) as service:  # type: ignore[arg-type]
        used = service.sessions.of("used")
        idle = service.sessions.of("idle")
        answer = service.ask(used, Query(IMAGE, "red"))
        newcomer = service.sessions.of("newcomer")
        assert service.sessions.of("used") is used and idle is not newcomer
        other = service.ask(newcomer, Query(IMAGE, "blue"))
        with pytest.raises(BusyError, match="at most 2 clients with a question at a time"):
            service.sessions.of("idle")
        gated.gate.release(2)
        answer.result(20)
        other.result(20)


def test_strangers_without_the_token_or_from_a_browser_are_refused(served, policy):
    with Served(policy, token="secret") as guarded:
        assert openpi_client(guarded.openpi, "secret").infer(OPENPI)["actions"].shape == (16, 7)
        exceptions = pytest.importorskip("websockets.exceptions")
        with pytest.raises(exceptions.InvalidStatus, match="401"):
            openpi_client(guarded.openpi, "guess")
        with (
            GrootClient(guarded.groot, "secret") as friend,
            GrootClient(guarded.groot, "guess") as stranger,
        ):
            assert friend.call("ping")["status"] == "ok"
            with pytest.raises(RuntimeError, match="expected the server's token"):
                stranger.call("ping")
    sync = pytest.importorskip("websockets.sync.client")
    # a page in a browser says where it is from
    with pytest.raises(exceptions.InvalidStatus, match="403"):
        sync.connect(f"ws://127.0.0.1:{served.openpi}", origin="http://elsewhere.example").close()


def test_a_server_with_keys_answers_only_those_on_its_list(policy, tmp_path, caplog):
    for name in ("server", "friend", "stranger"):
        curve.create(tmp_path / name, name)
    (tmp_path / "server" / "friend.key").write_bytes(
        (tmp_path / "friend" / "friend.key").read_bytes()
    )
    server, friend, stranger = (
        curve.Keys.load(tmp_path / name) for name in ("server", "friend", "stranger")
    )
    with Service(policy) as service:
        groot = GrootServer(service, "tcp://127.0.0.1:*", server)
        try:
            with GrootClient(
                groot.endpoint, keys=(friend.public, friend.secret, server.public)
            ) as client:
                assert client.get_action(GROOT)[0]["actions"].shape == (1, 16, 7)
                with ExitStack() as stack:
                    others = [(stranger.public, stranger.secret, server.public), None]
                    for keys in (*others, (friend.public, friend.secret, stranger.public)):
                        refused = stack.enter_context(GrootClient(groot.endpoint, keys=keys))
                        refused.socket.setsockopt(zmq.RCVTIMEO, 400)
                        refused.socket.setsockopt(zmq.SNDTIMEO, 400)
                        with pytest.raises(zmq.Again):
                            refused.call("ping")
                assert client.call("ping")["status"] == "ok"
            assert groot.refused >= 3
        finally:
            groot.close()
    assert any(stranger.public.decode() in line for line in caplog.messages)


def test_addresses_that_cannot_or_must_not_be_used_are_told(policy):
    with Service(policy) as service:
        with pytest.raises(ConfigError, match=r"expected keys .* plain TCP"):
            GrootServer(service, "tcp://0.0.0.0:*")
        converse = partial(Openpi, service.metadata)
        with pytest.raises(
            ConfigError, match=r"expected a loopback address or --insecure .* got '0\.0\.0\.0'"
        ):
            WebsocketServer(service, Place("0.0.0.0", 0), converse)
        first = WebsocketServer(service, Place(port=0), converse)
        groot = GrootServer(service, "tcp://127.0.0.1:*")
        with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1:{first.port}"):
            WebsocketServer(service, Place(port=first.port), converse)
        with pytest.raises(ConfigError, match="cannot bind"):
            GrootServer(service, groot.endpoint)
        first.close()
        groot.close()
    with pytest.raises(ConfigError, match="at most 16 votes"):
        Service(policy, ServiceConfig(votes=17))


def test_the_verb_serves_and_counts(tmp_path, capsys):
    bundle = str(write_bundle(tmp_path / "bundle"))
    ports = ["--zmq", "0", "--websocket", "0", "--vla-eval", "0"]
    assert cli.main(["serve", bundle, *ports, "--seconds", "0.1", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["places"]) == {"groot", "openpi", "vla-eval"} and told["counters"] == {}
    assert cli.main(["serve", bundle, "--zmq", "None", "--websocket", "None"]) == 1
    assert cli.main(["serve", bundle, "--host", "0.0.0.0", "--zmq", "0"]) == 1
    assert "plain TCP" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("client", "package"), [("openpi", "openpi_client"), ("vla-eval", "vla_eval.connection")]
)
def test_the_documented_lines_run_as_written(client, package, served, repo_root):
    pytest.importorskip(package, reason=f"{package} is not installed")
    page = (repo_root / "docs" / "guides" / "serving.md").read_text()
    lines = page.split(f"## {client}\n\n```python\n")[1].split("```")[0]
    lines = lines.replace("8000", str(served.openpi)).replace("8001", str(served.vla_eval))
    found: dict[str, Any] = {"image": IMAGE}
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    exec(f"async def use(image):\n{body}    return locals()", found)
    got = asyncio.run(found["use"](IMAGE))
    shape = got["actions"].shape if client == "openpi" else got["action"]["actions"].shape
    assert shape == ((16, 7) if client == "openpi" else (7,))
