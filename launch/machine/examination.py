"""What this machine can do, found by doing it: sessions are made, a frame is rendered, a timer is
timed.

Changes nothing and gives no advice. A machine without a GPU, TensorRT or rendering is healthy: only
a base install that cannot run a bundle is not.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trimvla.launch.machine.jetson_state import read_state
from trimvla.launch.machine.probes import run_probe
from trimvla.launch.machine.results import (
    DoctorResult,
    MachineResult,
    ProbeAnswer,
    TimerResult,
)

PACKAGES = ("numpy", "onnxruntime", "pyzmq", "msgspec", "tokenizers", "pillow")
OPTIONAL_PACKAGES = {  # package -> the extra that brings it
    "opencv-python-headless": "camera",
    "torch": "export",
    "onnx": "export",
    "safetensors": "export",
    "gymnasium": "sim",
    "mujoco": "sim",
    "mcap": "record",
    "prometheus-client": "metrics",
}
REMOTE_PROVIDERS = {"AzureExecutionProvider"}  # listed by every build; calls a cloud service
RENDERERS = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}  # MUJOCO_GL -> packages
CPU = "CPUExecutionProvider"
OTHERS = ("tensorrt", "simpler", "simpler_env", "realtime")  # probes
JITTER_PERIOD_NS = 5_000_000
JITTER_TICKS = 100
GIB = 2**30


def examine() -> DoctorResult:
    """Every check, without advice; `ok`: this install can run a bundle at all."""
    found = packages()
    timer = timer_jitter()  # before anything else keeps the machine busy
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {name: pool.submit(run_probe, *words) for name, words in backend_probes().items()}
        rendering = {
            name: pool.submit(run_probe, "rendering", env={"MUJOCO_GL": name}) for name in RENDERERS
        }
        others = {name: pool.submit(run_probe, name) for name in OTHERS}
    answers = {name: each.result() for name, each in others.items()}
    backends = {name: each.result() for name, each in running.items()}
    missing = [name for name in PACKAGES if found[name] is None]
    return DoctorResult(
        ok=not missing and CPU in backends and backends[CPU].ok,
        machine=machine(),
        packages=found,
        backends=backends,
        gpu=gpu(),
        tensorrt=answers["tensorrt"],
        rendering={name: each.result() for name, each in rendering.items()},
        simpler=answers["simpler"],
        simpler_env=answers["simpler_env"],
        cameras=sorted(str(path) for path in Path("/dev").glob("video*")),
        timer=timer,
        realtime=answers["realtime"],
        board=read_state(),
        advice=[],
    )


def machine() -> MachineResult:
    """Cores that this process may use, memory, board and Python."""
    board = Path("/proc/device-tree/model")
    affinity = hasattr(os, "sched_getaffinity")
    return MachineResult(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        board=board.read_text().strip("\0\n ") if board.exists() else None,
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)) if affinity else os.cpu_count(),
        memory_gib=memory_gib("MemTotal"),
        memory_free_gib=memory_gib("MemAvailable"),
    )


def memory_gib(field: str) -> float | None:
    """One field of /proc/meminfo [GiB]; None where the system has no such file."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return round(int(rows[field].split()[0]) * 1024 / GIB, 1)


def packages() -> dict[str, str | None]:
    """Installed version of each package that matters; None where it is not installed."""
    return {name: installed(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)}


def installed(name: str) -> str | None:
    """Version of an installed distribution; onnxruntime-gpu counts as onnxruntime."""
    names = [name, "onnxruntime-gpu"] if name == "onnxruntime" else [name]
    for candidate in names:
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def backend_probes() -> dict[str, tuple[str, str]]:
    """Of every provider that ONNX Runtime lists, and of OpenVINO, the probe that finds out whether
    a session really gets it.
    """
    try:
        import onnxruntime as ort
    except ImportError:
        return {CPU: ("provider", CPU)}  # which says why
    listed = [name for name in ort.get_available_providers() if name not in REMOTE_PROVIDERS]
    probes = {name: ("provider", name) for name in listed}
    return probes | ({"openvino": ("openvino", "")} if installed("openvino") else {})


def gpu() -> ProbeAnswer:
    """What the NVIDIA driver reports; not ok where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return ProbeAnswer(ok=False, why="no nvidia-smi")
    fields = "name,memory.total,driver_version"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return ProbeAnswer(ok=False, why=(done.stdout + done.stderr).strip()[:200])
    return ProbeAnswer(ok=True, devices=done.stdout.strip().splitlines())


def timer_jitter() -> TimerResult:
    """How late a sleeping process wakes up at 200 Hz: the floor under every control tick."""
    late: list[float] = []
    deadline = time.monotonic_ns()
    for _ in range(JITTER_TICKS):
        deadline += JITTER_PERIOD_NS
        time.sleep(max(0, deadline - time.monotonic_ns()) / 1e9)
        late.append((time.monotonic_ns() - deadline) / 1e3)
    late.sort()
    middle = late[len(late) // 2]
    return TimerResult(round(middle, 1), round(late[-2], 1), round(late[-1], 1))
