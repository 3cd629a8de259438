"""The runtime's CUDA calls on a GPU that is there: memory, copies, captured work, marks, and
nothing left behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runner_contract import check_runner
from tests.test_runtime_runner import INPUTS
from tests.test_trt_runner import KEPT, LONG, ORIN, PICTURE, SHORT, Bench
from tests.tiny_bundle import write_bundle
from tests.trt_on_stream import StreamTrt
from trimvla.runtime.backends.runner import create
from trimvla.runtime.backends.tensorrt import library as trt_library
from trimvla.runtime.backends.tensorrt import runner as trt_runner
from trimvla.runtime.backends.tensorrt.cuda import Cuda
from trimvla.runtime.backends.tensorrt.device import find_device
from trimvla.runtime.backends.tensorrt.tensors import DeviceTensor, TensorPlan
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import TensorSpec
from trimvla.runtime.bundle.schema_1 import STAGES
from trimvla.runtime.errors import BackendError
from trimvla.runtime.inference.policy import Policy

pytestmark = pytest.mark.skipif(not find_device().has_gpu, reason="no GPU: CUDA runs on one only")
SIZE = 1 << 20


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    pytest.importorskip("cuda.bindings.runtime")
    opened = Cuda()
    yield opened
    opened.close()


def free_memory(cuda: Cuda) -> int:
    """Bytes that nobody holds on the device."""
    status, free, _ = cuda._api.cudaMemGetInfo()
    assert int(status) == 0
    return int(free)


def test_memory_is_zero_and_bytes_come_back(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    device = cuda.device_memory(SIZE)
    host = cuda.host_memory(SIZE)
    back = cuda.host_memory(SIZE)
    back.view[:] = 1
    cuda.download(back, device, SIZE)
    cuda.synchronize()
    assert not back.view.any()
    host.view[:] = rng.integers(0, 256, SIZE, dtype=np.uint8)
    cuda.upload(device, host, SIZE)
    cuda.download(back, device, SIZE)
    cuda.synchronize()
    assert np.array_equal(back.view, host.view)


def test_captured_work_waits_for_its_launch_and_reads_what_lies_there_then(cuda: Cuda) -> None:
    host = cuda.host_memory(SIZE)
    back = cuda.host_memory(SIZE)
    device = cuda.device_memory(SIZE)

    def there_and_back() -> None:
        cuda.upload(device, host, SIZE)
        cuda.download(back, device, SIZE)

    graph = cuda.capture(there_and_back)
    cuda.synchronize()
    host.view[:] = 7
    assert not back.view.any()  # a capture executes nothing
    start = cuda.event()
    end = cuda.event()
    for value in (7, 9):
        host.view[:] = value
        cuda.record(start)
        cuda.launch(graph)
        cuda.record(end)
        cuda.synchronize()
        assert (back.view == value).all()
        assert 0 < cuda.milliseconds(start, end) < 1000


@pytest.mark.parametrize("between", [False, True])
def test_a_tensor_goes_there_and_back(cuda: Cuda, between: bool) -> None:
    spec = TensorSpec("x", "float32", (3, 5))
    tensor = DeviceTensor(TensorPlan(spec, 60, between), cuda)
    value = np.random.default_rng(1).standard_normal((3, 5), dtype=np.float32)
    tensor.upload(value)
    tensor.download()
    cuda.synchronize()
    assert np.array_equal(tensor.value(1), value)


def test_an_error_names_the_call_and_the_capture_is_ended(cuda: Cuda) -> None:
    with pytest.raises(BackendError, match=r"cudaMalloc: .*cudaErrorMemoryAllocation"):
        cuda.device_memory(1 << 60)

    def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        cuda.capture(fail)
    cuda.device_memory(SIZE)  # the stream captures no longer
    cuda.synchronize()


def test_closing_gives_everything_back() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    Cuda().close()  # CUDA keeps what it needs itself
    first = Cuda()
    before = free_memory(first)
    for _ in range(8):
        first.device_memory(64 * SIZE)
    assert before - free_memory(first) >= 8 * 64 * SIZE
    first.close()
    again = Cuda()
    assert free_memory(again) >= before - 4 * SIZE
    again.close()
    again.close()  # twice is once


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The engines of a trimmed bundle, executed in a stream of this GPU."""
    pytest.importorskip("cuda.bindings.runtime")
    trt = StreamTrt()
    made = Bench(write_bundle(tmp_path / "bundle", kept=KEPT), tmp_path / "engines", trt.cuda, trt)
    monkeypatch.setattr(trt_library, "load_trt", trt.library)
    monkeypatch.setattr(trt_runner, "find_device", lambda: ORIN)
    for stage in STAGES:
        made.write_engine(stage)
    yield made
    assert not trt.failures


def test_a_policy_acts_as_on_onnx_runtime_and_nothing_is_made_later(bench: Bench) -> None:
    with_engines = bench.open()
    with_graphs = Policy.load(bench.bundle)
    executions = [context.executions for context in bench.trt.contexts]
    # vision, two lengths of prompt, action; each to load, and to capture
    assert executions == [2] * 4
    for seed, words in enumerate((SHORT, LONG, LONG, SHORT)):
        expected, got = (
            policy.infer(PICTURE, words, seed=seed) for policy in (with_graphs, with_engines)
        )
        np.testing.assert_array_equal(got.sample, expected.sample)
        np.testing.assert_array_equal(got.kept, KEPT)
        assert min(got.milliseconds.values()) > 0
    assert [context.executions for context in bench.trt.contexts] == executions  # graphs alone ran
    with_engines.close()


@pytest.mark.parametrize("stage", INPUTS)
def test_every_stage_keeps_the_contract(bench: Bench, stage: str) -> None:
    spec = bundles.load(bench.bundle).stages[stage]
    runner = create("tensorrt", bench.bundle / spec.file, spec, engines=bench.folder)
    check_runner(runner, INPUTS[stage])
    runner.close()
