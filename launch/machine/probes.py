"""Small experiments, each run in a process of its own because a bad driver may crash or hang it.

Draws no conclusions.

`python -m trimvla.launch.machine.probes NAME [ARGUMENT]` prints one JSON object; `run_probe` runs
that and always returns an answer.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from trimvla.launch.machine.results import ProbeAnswer
from trimvla.launch.result import as_plain

# An ONNX model that computes y = Relu(x) on float32[1], opset 20: enough to make a session on any
# provider.
TINY_MODEL = (
    b'\x08\t\x12\x00:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)
RENDER_SCENE = """<mujoco><worldbody><light pos="0 0 2"/>
<geom type="sphere" size=".2" rgba="1 0 0 1"/>
<camera name="c" pos="0 -1 0" xyaxes="1 0 0 0 0 1"/></worldbody></mujoco>"""


def run_probe(
    name: str, argument: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> ProbeAnswer:
    """Run one probe in a fresh process; `{"ok": bool, ...}`, with "why" where it is not ok."""
    command = [sys.executable, "-m", "trimvla.launch.machine.probes", name, argument]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ProbeAnswer(ok=False, why=f"no answer within {timeout_s:g} s")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=ProbeAnswer)
    except (IndexError, msgspec.DecodeError):
        why = f"ended with status {done.returncode}: {_last_line(done.stderr)}"
        return ProbeAnswer(ok=False, why=why)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "no message"


def provider(name: str) -> ProbeAnswer:
    """An ONNX Runtime session on this provider: ok only if the session really has it, not its CPU
    fallback."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(TINY_MODEL, providers=[name])
    got = session.get_providers()
    return ProbeAnswer(
        ok=got[0] == name, why="" if got[0] == name else f"the session fell back to {got[0]}"
    )


def openvino(_: str) -> ProbeAnswer:
    """OpenVINO's own package: a graph is compiled and run, and the precisions are listed that this
    processor has."""
    import numpy as np

    library = importlib.import_module("openvino")
    core = library.Core()
    compiled = core.compile_model(
        core.read_model(TINY_MODEL), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    got = float(compiled([np.array([-1.0], np.float32)])[0][0])
    precisions = sorted(
        set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        & {"FP32", "FP16", "BF16", "INT8"}
    )
    why = "" if got == 0.0 else f"expected 0 for relu(-1), got {got}"
    return ProbeAnswer(
        ok=not why, version=library.__version__.split("-")[0], precisions=precisions, why=why
    )


def tensorrt(_: str) -> ProbeAnswer:
    """The TensorRT builder, from `tensorrt` or else `tensorrt_rtx_bindings`: ok if a builder can be
    made."""
    reasons = []
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        try:
            trt = importlib.import_module(module)
            ok = trt.Builder(trt.Logger(trt.Logger.ERROR)) is not None
            return ProbeAnswer(ok=ok, module=module, version=trt.__version__, why="")
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            reasons.append(f"{module}: {error}")
    return ProbeAnswer(ok=False, why="; ".join(reasons))


def rendering(_: str) -> ProbeAnswer:
    """One MuJoCo frame with the OpenGL that MUJOCO_GL names: ok if a red sphere is in it. `ms` is
    the second frame."""
    import mujoco
    import numpy as np

    model = mujoco.MjModel.from_xml_string(RENDER_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 128, 128) as renderer:
        renderer.update_scene(data, camera="c")
        renderer.render()
        start = time.perf_counter_ns()
        renderer.update_scene(data, camera="c")
        frame = renderer.render().astype(np.int32)
        took = (time.perf_counter_ns() - start) / 1e6
    red = bool((frame[..., 0] - frame[..., 1] > 50).any())
    return ProbeAnswer(ok=red, ms=round(took, 2), why="" if red else "the frame is empty")


def realtime(_: str) -> ProbeAnswer:
    """Everything that `runtime.realtime` can request, in this process that is good for nothing
    else."""
    from trimvla.runtime.control.realtime import RealtimeConfig, set_up

    cores = (min(os.sched_getaffinity(0)),) if hasattr(os, "sched_getaffinity") else (0,)
    grants = set_up(RealtimeConfig(priority=1, cores=cores, lock_memory=True, freeze_gc=True))
    refused = {grant.name: grant.refused for grant in grants if grant.refused}
    granted = [grant.name for grant in grants if not grant.refused]
    why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    return ProbeAnswer(ok=not refused, granted=granted, why=why)


def simpler(_: str) -> ProbeAnswer:
    """Whether SimplerEnv's tasks can be played: ManiSkill, a Vulkan driver and the assets."""
    from trimvla.sim.simpler.install import missing

    why = missing()
    return ProbeAnswer(ok=why is None, why=why or "")


def simpler_env(_: str) -> ProbeAnswer:
    """Whether the original SimplerEnv package can be played: installed, versions that fit, Vulkan
    and assets."""
    from trimvla.sim.simpler.install import original_missing, versions

    why = original_missing()
    return ProbeAnswer(ok=why is None, versions=versions(), why=why or "")


PROBES: dict[str, Callable[[str], ProbeAnswer]] = {
    "provider": provider,
    "openvino": openvino,
    "tensorrt": tensorrt,
    "rendering": rendering,
    "realtime": realtime,
    "simpler": simpler,
    "simpler_env": simpler_env,
}


def main() -> None:
    """Run the probe that the command line names; print its answer, or why there is none."""
    name, argument = [*sys.argv[1:], ""][:2]
    try:
        answer = PROBES[name](argument)
    except Exception as error:
        answer = ProbeAnswer(ok=False, why=f"{type(error).__name__}: {error}")
    print(json.dumps(as_plain(answer)), flush=True)


if __name__ == "__main__":
    main()
