"""Nothing is reported to anybody: a process of ours, in a network of its own, asks no name server
and writes no file.

The namespace has a default route and a name server that keeps every question, so a library believes
itself online. Each check is made once without the switches too: what it would miss there, it would
miss everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundle import write_bundle

NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
NAME_SERVER = """
import socket, subprocess, sys, threading
subprocess.run("ip link set lo up".split(), check=True)
subprocess.run("ip addr add 10.9.9.1/24 dev lo".split(), check=True)
subprocess.run("ip route add default via 10.9.9.2 dev lo".split(), check=True)
subprocess.run(["mount", "--bind", sys.argv[1] + "/resolv.conf", "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def keep():
    with open(sys.argv[1] + "/asked", "ab", buffering=0) as kept:
        while True:
            kept.write(server.recv(512) + b"\\n")

threading.Thread(target=keep, daemon=True).start()
sys.exit(subprocess.run(sys.argv[2:]).returncode)
"""
REPORT_S = 40  # ONNX Runtime asks for its host some ten seconds after the first session
SESSION = "import onnxruntime as ort, sys; ort.InferenceSession(sys.argv[1])"
IMPORTS = (
    "import trimvla.runtime.backends.ort_runner",
    "import trimvla.export.precision.emulate_bf16",
    "import trimvla.launch.verbs.doctor",
    "import trimvla.sim.episodes",
    "import trimvla.policies.sizes.config",
)


class Network:
    """A network namespace with a fresh HOME; `run` runs a command in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "home").mkdir()
        (place / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        (place / "asked").touch()

    def run(self, *command: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        # pytest and continuous integration are signs for ONNX Runtime to be silent; so are our own
        # switches
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in SILENT and "PYTEST" not in name
        }
        environ = kept | {
            "HOME": str(self.place / "home"),
            "XDG_CACHE_HOME": str(self.place / "home" / ".cache"),
        }
        server = (sys.executable, "-c", NAME_SERVER, str(self.place))
        return subprocess.run(
            [*NAMESPACE, *server, *command],
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @property
    def asked(self) -> bytes:
        """Every question to the name server."""
        return (self.place / "asked").read_bytes()

    @property
    def files(self) -> list[str]:
        """What was written under HOME, but for caches that stay here: matplotlib's fonts, Mesa's
        shaders.
        """
        home = self.place / "home"
        found = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
        return [name for name in found if not any(cache in name for cache in LOCAL_CACHES)]


LOCAL_CACHES = (".cache/matplotlib", ".cache/mesa_shader_cache")
SILENT = (
    "CI",
    "TF_BUILD",
    "JENKINS_URL",
    "GITHUB_ACTIONS",
    "ORT_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """Skips, with the reason, where namespaces are not allowed."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare and ip")
    made = Network(tmp_path)
    tried = made.run(
        sys.executable, "-c", "import socket; socket.getaddrinfo('example.invalid', 1)"
    )
    if b"example" not in made.asked:
        pytest.skip(f"no network namespace with a name server here: {tried.stderr.strip()[-200:]}")
    (tmp_path / "asked").write_bytes(b"")
    return made


def reports_at_all() -> bool:
    """Whether this ONNX Runtime is one that reports."""
    import onnxruntime

    library = next(Path(onnxruntime.__file__).parent.glob("capi/*pybind11_state*"))
    return b"ORT_DISABLE_TELEMETRY" in library.read_bytes()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Any graph."""
    return next(write_bundle(tmp_path_factory.mktemp("tiny") / "bundle").glob("*.onnx"))


def test_without_the_switch_onnx_runtime_leaves_files(network: Network, graph: Path) -> None:
    if not reports_at_all():
        pytest.skip("this ONNX Runtime does not report")
    assert network.run(sys.executable, "-c", SESSION, str(graph)).returncode == 0
    assert any("onnxruntime" in name.lower() for name in network.files)


@pytest.mark.parametrize("first", IMPORTS)
def test_every_package_of_ours_throws_the_switch(network: Network, graph: Path, first: str) -> None:
    done = network.run(sys.executable, "-c", f"{first}; {SESSION}", str(graph))
    assert done.returncode == 0, done.stderr[-2000:]
    assert network.files == []
    assert network.asked == b""


def test_importing_openvino_asks_for_nobody(network: Network) -> None:
    pytest.importorskip("openvino")
    code = "import trimvla.runtime.backends.openvino_runner, openvino; openvino.Core()"
    done = network.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert network.files == []
    assert network.asked == b""


def test_openvino_alone_would_have_asked(network: Network) -> None:
    if not list(
        Path(pytest.importorskip("openvino").__file__).parent.parent.glob("openvino_telemetry")
    ):
        pytest.skip("OpenVINO came without its reporter")
    network.run(sys.executable, "-c", "import openvino")
    assert b"google-analytics" in network.asked
    assert network.files != []


def test_doctor_asks_for_nobody(network: Network) -> None:
    done = network.run(sys.executable, "-m", "trimvla.launch.cli", "doctor", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert network.files == []
    assert network.asked == b""


@pytest.mark.slow
def test_a_running_system_asks_for_nobody(network: Network) -> None:
    words = ("run", "robot", "--task", "pick up the red cube", "--seconds", str(REPORT_S), "--json")
    camera = ("--camera-front.kind", "synthetic")
    done = network.run(sys.executable, "-m", "trimvla.launch.cli", *words, *camera)
    assert '"policy"' in done.stdout, done.stderr[-2000:]
    assert network.files == []
    assert network.asked == b""


@pytest.mark.slow
def test_a_session_without_the_switch_would_have_asked(network: Network, graph: Path) -> None:
    if not reports_at_all():
        pytest.skip("this ONNX Runtime does not report")
    network.run(sys.executable, "-c", f"{SESSION}; import time; time.sleep({REPORT_S})", str(graph))
    assert b"events" in network.asked
