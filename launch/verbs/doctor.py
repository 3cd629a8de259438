"""What this machine can do, found by doing it: sessions are made, a frame is rendered, a timer is
timed.

Knows what to install for what is missing; changes nothing. A machine without a GPU, TensorRT or
rendering is healthy: only a base install that cannot run a bundle makes `ok` false.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from trimvla.launch.console import styled
from trimvla.launch.machine.jetson_state import read_state
from trimvla.launch.machine.probes import ask
from trimvla.launch.options import Options, Result
from trimvla.runtime.backends.tensorrt.cuda import INSTALL

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
# MUJOCO_GL -> Debian packages
RENDERERS = {"egl": "libegl1 libgl1-mesa-dri", "osmesa": "libosmesa6"}
JITTER_PERIOD_NS = 5_000_000
JITTER_TICKS = 100
GIB = 2**30


@dataclass(frozen=True)
class Args(Options):
    """Say what this machine can do, and what to install for the rest."""


def run(args: Args) -> Result:
    """Examine the machine, print a table for people, return everything as data."""
    result = examine()
    console = args.console()
    console.print(as_table(result))
    for line in result["advice"]:
        console.print(f"  - {line}")
    return result


def examine() -> Result:
    """Every check; "ok" says whether this install can run a bundle at all."""
    result: Result = {
        "machine": machine(),
        "packages": packages(),
        "backends": backends(),
        "gpu": gpu(),
        "tensorrt": ask("tensorrt"),
        "rendering": {name: ask("rendering", env={"MUJOCO_GL": name}) for name in RENDERERS},
        "simpler": ask("simpler"),
        "simpler_env": ask("simpler_env"),
        "cameras": sorted(str(path) for path in Path("/dev").glob("video*")),
        "timer": timer_jitter(),
        "realtime": ask("realtime"),
        "board": read_state().as_dict(),
    }
    missing = [name for name in PACKAGES if result["packages"][name] is None]
    result["advice"] = advice(result)
    result["ok"] = not missing and result["backends"].get("CPUExecutionProvider", {}).get(
        "ok", False
    )
    return result


def machine() -> dict[str, Any]:
    """Cores that this process may use, memory [GiB], board and Python."""
    board = Path("/proc/device-tree/model")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "board": board.read_text().strip("\0\n ") if board.exists() else None,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": memory_gib("MemTotal"),
        "memory_free_gib": memory_gib("MemAvailable"),
    }


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


def backends() -> dict[str, dict[str, Any]]:
    """Every provider that ONNX Runtime lists, and OpenVINO: does a session really get it?"""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return {"CPUExecutionProvider": {"ok": False, "why": str(error)}}
    listed = [name for name in ort.get_available_providers() if name not in REMOTE_PROVIDERS]
    answers = {name: ask("provider", name) for name in listed}
    if installed("openvino"):
        answers["openvino"] = ask("openvino")
    return answers


def gpu() -> dict[str, Any]:
    """What the NVIDIA driver says; "ok" is False where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return {"ok": False, "why": "no nvidia-smi"}
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        return {"ok": False, "why": (done.stdout + done.stderr).strip()[:200]}
    return {"ok": True, "devices": done.stdout.strip().splitlines()}


def timer_jitter() -> dict[str, float]:
    """How late a sleeping process wakes up at 200 Hz [microseconds]: the floor under every control
    tick.
    """
    late = []
    deadline = time.monotonic_ns()
    for _ in range(JITTER_TICKS):
        deadline += JITTER_PERIOD_NS
        time.sleep(max(0, deadline - time.monotonic_ns()) / 1e9)
        late.append((time.monotonic_ns() - deadline) / 1e3)
    late.sort()
    return {
        "p50_us": round(late[len(late) // 2], 1),
        "p99_us": round(late[-2], 1),
        "max_us": round(late[-1], 1),
    }


def advice(result: Result) -> list[str]:
    """What to install, one line for each thing that is missing."""
    lines = [
        f"pip install trimvla   ({name} is missing)"
        for name in PACKAGES
        if result["packages"][name] is None
    ]
    extras = {
        extra for name, extra in OPTIONAL_PACKAGES.items() if result["packages"][name] is None
    }
    lines += [
        f"pip install 'trimvla[{extra}]'   (for the verbs that {extra})" for extra in sorted(extras)
    ]
    lines += rendering_advice(result)
    lines += gpu_advice(result) + read_state().advice()
    if is_x86() and "openvino" not in result["backends"]:
        lines.append("pip install 'trimvla[openvino]'   (the fastest backend on this processor)")
    return lines


def is_x86() -> bool:
    """Whether this is a processor for which OpenVINO has been measured to be the fastest."""
    return platform.machine() in ("x86_64", "AMD64")


def rendering_advice(result: Result) -> list[str]:
    """Either OpenGL will do; what to install where neither works."""
    if (
        any(answer["ok"] for answer in result["rendering"].values())
        or result["packages"]["mujoco"] is None
    ):
        return []
    return [f"apt-get install {' '.join(RENDERERS.values())}   (the simulator renders nothing)"]


def gpu_advice(result: Result) -> list[str]:
    """A GPU that no backend uses, and how to use it."""
    if not result["gpu"]["ok"]:
        return []
    lines = []
    if not result["backends"].get("CUDAExecutionProvider", {}).get("ok"):
        lines.append(
            "pip uninstall onnxruntime && pip install 'trimvla[gpu]'   (the GPU is unused)"
        )
    if not result["tensorrt"]["ok"]:
        lines.append(
            "pip install 'trimvla[tensorrt]', on Jetson the JetPack package   (no engines without"
            " TensorRT)"
        )
    elif installed("cuda-bindings") is None:
        lines.append(f"{INSTALL}   (engines run through cuda-python)")
    return lines


def as_table(result: Result) -> Table:
    """The card for people: one row a capability."""
    table = Table(title="trimvla doctor", show_header=False, title_justify="left")
    box = result["machine"]
    table.add_row(
        "machine", f"{box['board'] or box['system']}, {box['cores']} cores, {box['memory_gib']} GiB"
    )
    for name, answer in result["backends"].items():
        table.add_row(name, mark(answer, ", ".join(answer.get("precisions", []))))
    table.add_row("GPU", mark(result["gpu"], ", ".join(result["gpu"].get("devices", []))))
    trt = result["tensorrt"]
    table.add_row("TensorRT", mark(trt, f"{trt.get('module')} {trt.get('version')}"))
    for name, answer in result["rendering"].items():
        table.add_row(f"rendering, {name}", mark(answer, f"{answer.get('ms')} ms a 128x128 frame"))
    table.add_row("SimplerEnv tasks", mark(result["simpler"]))
    table.add_row("original SimplerEnv", mark(result["simpler_env"]))
    table.add_row("cameras", ", ".join(result["cameras"]) or "none")
    for name, text in board_rows(result["board"]):
        table.add_row(name, text)
    timer = result["timer"]
    table.add_row("timer", f"wakes {timer['p50_us']:.0f} us late (p99 {timer['p99_us']:.0f} us)")
    realtime = result["realtime"]
    table.add_row("real time", mark(realtime, ", ".join(realtime.get("granted", []))))
    return table


def board_rows(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Jetson release and power mode, clocks, the hottest zone; only what the machine tells."""
    if board["release"] is not None:
        yield "Jetson", f"{board['release']}, power mode {board['power_mode'] or 'unknown'}"
    clocks = [clock for clock in board["clocks"] if clock["now_mhz"] is not None]
    if clocks:
        yield (
            "clocks",
            ", ".join(
                f"{each['name']} {each['now_mhz']:.0f} of {each['most_mhz'] or 0:.0f} MHz"
                for each in clocks
            ),
        )
    if board["hottest"] is not None:
        yield "hottest", f"{board['hottest'][0]}, {board['hottest'][1]:.0f} degrees Celsius"


def mark(answer: dict[str, Any], detail: str = "") -> Text:
    """yes with the detail, or no with the reason."""
    return (
        styled("yes", "green", detail)
        if answer["ok"]
        else styled("no", "yellow", f" {answer.get('why', '')}")
    )
