"""What a machine lacks, and the doctor's card for people. Knows an examination's result; tries
nothing."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from trimvla.launch.console import styled
from trimvla.launch.machine.examination import OPTIONAL_PACKAGES, PACKAGES, RENDERERS, installed
from trimvla.launch.machine.jetson_state import State
from trimvla.launch.machine.results import DoctorResult, ProbeAnswer
from trimvla.runtime.backends.tensorrt.cuda import INSTALL


def advice(result: DoctorResult) -> list[str]:
    """What to install, one line for each thing that is missing."""
    missing = [name for name, found in result.packages.items() if found is None]
    extras = {OPTIONAL_PACKAGES[name] for name in missing if name in OPTIONAL_PACKAGES}
    lines = [f"pip install trimvla   ({name} is missing)" for name in missing if name in PACKAGES]
    lines += [
        f"pip install 'trimvla[{extra}]'   (for the verbs that {extra})" for extra in sorted(extras)
    ]
    lines += rendering_advice(result)
    lines += gpu_advice(result) + result.board.advice()
    if is_x86() and "openvino" not in result.backends:
        lines.append("pip install 'trimvla[openvino]'   (the fastest backend on this processor)")
    return lines


def is_x86() -> bool:
    """Whether this is a processor for which OpenVINO has been measured to be the fastest."""
    return platform.machine() in ("x86_64", "AMD64")


def rendering_advice(result: DoctorResult) -> list[str]:
    """Either OpenGL will do; what to install where neither works."""
    works = any(answer.ok for answer in result.rendering.values())
    if works or result.packages["mujoco"] is None:
        return []
    return [f"apt-get install {' '.join(RENDERERS.values())}   (the simulator renders nothing)"]


def gpu_advice(result: DoctorResult) -> list[str]:
    """A GPU that no backend uses, and how to use it."""
    if not result.gpu.ok:
        return []
    lines: list[str] = []
    cuda = result.backends.get("CUDAExecutionProvider")
    if cuda is None or not cuda.ok:
        lines.append(
            "pip uninstall onnxruntime && pip install 'trimvla[gpu]'   (the GPU is unused)"
        )
    if not result.tensorrt.ok:
        package = "pip install 'trimvla[tensorrt]', on Jetson the JetPack package"
        lines.append(f"{package}   (no engines without TensorRT)")
    elif installed("cuda-bindings") is None:
        lines.append(f"{INSTALL}   (engines run through cuda-python)")
    return lines


def as_table(result: DoctorResult) -> Table:
    """The card for people: one row a capability."""
    table = Table(title="trimvla doctor", show_header=False, title_justify="left")
    box = result.machine
    table.add_row("machine", f"{box.board or box.system}, {box.cores} cores, {box.memory_gib} GiB")
    for name, answer in result.backends.items():
        table.add_row(name, mark(answer, ", ".join(answer.precisions or [])))
    table.add_row("GPU", mark(result.gpu, ", ".join(result.gpu.devices or [])))
    trt = result.tensorrt
    table.add_row("TensorRT", mark(trt, f"{trt.module} {trt.version}"))
    for name, answer in result.rendering.items():
        table.add_row(f"rendering, {name}", mark(answer, f"{answer.ms} ms a 128x128 frame"))
    table.add_row("SimplerEnv tasks", mark(result.simpler))
    table.add_row("original SimplerEnv", mark(result.simpler_env))
    table.add_row("cameras", ", ".join(result.cameras) or "none")
    for name, text in board_rows(result.board):
        table.add_row(name, text)
    timer = result.timer
    late = f"wakes {timer.p50_us:.0f} us late (p99 {timer.p99_us:.0f} us)"
    table.add_row("timer", late)
    realtime = result.realtime
    table.add_row("real time", mark(realtime, ", ".join(realtime.granted or [])))
    return table


def board_rows(board: State) -> Iterator[tuple[str, str]]:
    """Jetson release and power mode, clocks, the hottest zone; only what the machine reports."""
    if board.release is not None:
        yield "Jetson", f"{board.release}, power mode {board.power_mode or 'unknown'}"
    clocks = [
        f"{clock.name} {clock.now_mhz:.0f} of {clock.most_mhz or 0:.0f} MHz"
        for clock in board.clocks
        if clock.now_mhz is not None
    ]
    if clocks:
        yield "clocks", ", ".join(clocks)
    if board.hottest is not None:
        name, temperature = board.hottest
        yield "hottest", f"{name}, {temperature:.0f} degrees Celsius"


def mark(answer: ProbeAnswer, detail: str = "") -> Text:
    """yes with the detail, or no with the reason."""
    if answer.ok:
        return styled("yes", "green", detail)
    return styled("no", "yellow", f" {answer.why or ''}")
