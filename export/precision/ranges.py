"""How large activations get on calibration frames: the float32 stages of a bundle, run one after
the other.

ONNX Runtime is asked for the wanted tensors beside the stage's outputs. Knows graphs by the names
of their tensors; not which tensors are wanted, nor what for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.calibrate import Calibration
from trimvla.runtime.backends.ort_runner import CPU, session_options
from trimvla.runtime.errors import ConfigError

Probed = dict[str, np.ndarray]
CalibrationFrames = Calibration | Sequence[Mapping[str, np.ndarray]]
"""CogACT's images and prompts, or what each frame of any family gives to the stages by tensor name,
padded as the runtime pads, with noise.
"""


class Probe:
    """A stage that also gives tensors from its inside."""

    def __init__(self, model: Path, wanted: Sequence[str]) -> None:
        """`wanted` are names of float32 tensors of the graph."""
        proto = onnx.load(str(model), load_external_data=False)
        self.inputs = [value.name for value in proto.graph.input]
        self.largest = dict.fromkeys(wanted, 0.0)
        present = {value.name for value in proto.graph.output}
        more = (name for name in wanted if name not in present)
        proto.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in more
        )
        beside = model.with_name(f"{model.stem}.probe.onnx")  # its external weights lie here
        onnx.save(proto, str(beside))
        try:
            self.session = ort.InferenceSession(str(beside), session_options(0), providers=[CPU])
        finally:
            beside.unlink()
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, tensors: Probed) -> Probed:
        """Run on what it needs of the tensors; its outputs, and the ranges grow."""
        got = self.session.run(self.outputs, {name: tensors[name] for name in self.inputs})
        found = dict(zip(self.outputs, map(np.asarray, got), strict=True))
        for name, largest in self.largest.items():
            self.largest[name] = max(largest, float(np.abs(found[name]).max(initial=0.0)))
        return found


def activation_ranges(
    stages: Mapping[str, Path],
    wanted: Mapping[str, Sequence[str]],
    data: CalibrationFrames,
    cfg: Any,  # noqa: ANN401
) -> dict[str, dict[str, float]]:
    """Largest absolute value of tensors over all frames.

    Args:
        stages: the float32 graphs, in the order in which they run.
        wanted: stage -> names of its tensors.
        data: frames of that policy.
        cfg: the policy's.

    Returns:
        Stage -> tensor -> largest absolute value.

    Raises:
        ConfigError: a frame's prompt is longer than the largest bucket.
    """
    probes = {name: Probe(path, wanted[name]) for name, path in stages.items()}
    for given in frames_of(data, cfg):
        tensors = dict(given)
        for probe in probes.values():
            tensors |= probe.run(tensors)
    return {name: probe.largest for name, probe in probes.items()}


def frames_of(data: CalibrationFrames, cfg: Any) -> Iterator[Mapping[str, np.ndarray]]:  # noqa: ANN401
    """What each frame gives to the stages; the noise of the n-th is drawn from n."""
    if isinstance(data, Calibration):
        yield from (frame(data, index, cfg) for index in range(len(data.last)))
    else:
        yield from data


def frame(data: Calibration, index: int, cfg: PolicyConfig) -> Probed:
    """What a frame gives to the stages, padded as the runtime pads."""
    last = int(data.last[index])
    prompt = cfg.prompt
    bucket = next((length for length in prompt.buckets if length > last), None)
    if bucket is None:
        raise ConfigError(
            f"expected calibration prompts of at most {prompt.buckets[-1]} ids, got {last + 1}"
        )
    ids = np.full((1, bucket), prompt.pad_id, np.int64)
    ids[0, : last + 1] = data.input_ids[index, : last + 1]
    chunk = (1, cfg.head.horizon, cfg.head.action_dim)
    return {
        "image": data.images[index][None],
        "input_ids": ids,
        "last": np.array([last], np.int64),
        "noise": np.random.default_rng(index).standard_normal(chunk, dtype=np.float32),
    }
