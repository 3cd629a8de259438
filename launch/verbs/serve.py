"""`trimvla serve`: a bundle behind the protocols of existing clients."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from trimvla.launch.options import Options
from trimvla.launch.system.results import ServeResult
from trimvla.launch.system.signals import stop_event
from trimvla.runtime.bus.curve import Keys
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.inference.policy import Policy
from trimvla.runtime.ports import check_port
from trimvla.runtime.preprocess.observation import blank_observation
from trimvla.runtime.servers.open_servers import Listening, open_servers
from trimvla.runtime.servers.service import Service, ServiceConfig
from trimvla.runtime.servers.tokens import read_token

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Args(Options):
    """Serve a bundle to clients of GR00T (ZeroMQ), openpi and vla-eval (websockets) until Ctrl-C.

    A port of 0 takes any that is free, None switches a protocol off.
    """

    bundle: Positional[str] = "tabletop"
    """A bundle's path, or a shipped bundle's name."""

    zmq: int | None = 5555
    """Port for GR00T's protocol."""

    websocket: int | None = 8000
    """Port for openpi's protocol."""

    vla_eval: int | None = None
    """Port for vla-eval's protocol."""

    host: str = "127.0.0.1"
    """Address to listen at; others than loopback need --keys, which websockets do not have, or
    --insecure.
    """

    keys: Path | None = None
    """A directory of `trimvla keys`: ZeroMQ clients must show a key that is in it."""

    token_file: Path | None = None
    """A file (0600) with the word that clients must show: GR00T's `api_token`, openpi's `api_key`,
    or ?token=.
    """

    insecure: bool = False
    """Let plain connections leave this host."""

    camera: str = ""
    """For a bundle with one camera: what clients call its image; by default as the bundle does,
    else the only one, or one of a usual name.
    """

    votes: int = 1
    """Chunks that vote on a step's row, for vla-eval (CogACT's adaptive ensemble; SimplerEnv: 2 or
    7).
    """

    whole_chunks: bool = False
    """Answer vla-eval with whole chunks instead of the row that is due."""

    seed: int = 0
    """Of the noise, where a client sets none."""

    max_age_s: float = 0.5
    """Of a request that has the time of its image."""

    idle_s: float = 300.0
    """A client without a request for so long is forgotten."""

    max_sessions: int = 64
    """Clients at a time."""

    backend: str = "onnxruntime"
    """What runs the bundle: onnxruntime, openvino, tensorrt, tensorrt-rtx, or module:attribute of
    your own (docs/guides/own-backend.md)."""

    provider: str | None = None
    """What executes inside the backend, such as CUDAExecutionProvider of ONNX Runtime (default: the
    CPU).
    """

    threads: int = 0
    """Of the backend; 0 takes all cores."""

    seconds: float | None = None
    """Stop after this time."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a port that is none."""
        ports = {"--zmq": self.zmq, "--websocket": self.websocket, "--vla-eval": self.vla_eval}
        for option, port in ports.items():
            if port is not None:
                check_port(port, option)

    def service(self) -> ServiceConfig:
        """How the policy is shared. Raises ConfigError for what is out of range."""
        return ServiceConfig(
            seed=self.seed,
            camera=self.camera,
            votes=self.votes,
            max_age_s=self.max_age_s,
            idle_s=self.idle_s,
            max_sessions=self.max_sessions,
        )

    def listening(self) -> Listening:
        """Where the servers listen, and to whom; reads the files of keys and of the word."""
        return Listening(
            host=self.host,
            zmq=self.zmq,
            websocket=self.websocket,
            vla_eval=self.vla_eval,
            keys=Keys.load(self.keys) if self.keys else None,
            token=read_token(self.token_file) if self.token_file else "",
            insecure=self.insecure,
            camera=self.camera,
            whole_chunks=self.whole_chunks,
        )


def run(args: Args) -> ServeResult:
    """Load, warm up, listen, wait; how many questions there were."""
    config = args.service()
    at = args.listening()
    if args.zmq is args.websocket is args.vla_eval is None:
        raise ConfigError("expected a port for --zmq, --websocket or --vla-eval, got none")
    # a damaged image is its client's error, not a line of our log
    warnings.filterwarnings("ignore", module="PIL")
    stop = stop_event(watch_parent=False)
    with ExitStack() as stack:
        policy = Policy.load(
            args.bundle, backend=args.backend, provider=args.provider, threads=args.threads
        )
        stack.callback(policy.close)
        policy.infer(blank_observation(policy.manifest))
        service = stack.enter_context(Service(policy, config, on_lost=stop.set))
        places = open_servers(service, at, stack)
        where = ", ".join(places.values())
        args.console().print(f"serving '{args.bundle}' at {where}; Ctrl-C stops")
        stop.wait(args.seconds)
    # whoever started this server may start it again, and then it gets a new device
    if service.lost is not None:
        raise service.lost
    return ServeResult(ok=True, bundle=args.bundle, places=places, counters=dict(service.counters))
