"""TensorRT's runner: on a GPU where there is one, and everywhere against fakes that follow the
documented API.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.fake_cuda import FakeCuda
from tests.fake_trt import Context, Engine, FakeTrt, Runtime, serialised
from tests.runner_contract import check_chain, check_runner
from tests.test_runtime_runner import INPUTS
from tests.tiny_bundle import BUCKETS, write_bundle
from tests.trt_parts import library_or_skip
from trimvla.launch import cli
from trimvla.runtime.backends.chain import HostChain, open_chain
from trimvla.runtime.backends.runner import create
from trimvla.runtime.backends.tensorrt import cuda, engine_folders
from trimvla.runtime.backends.tensorrt import engine as trt_engine
from trimvla.runtime.backends.tensorrt import engine_cache as engines
from trimvla.runtime.backends.tensorrt import library as trt_library
from trimvla.runtime.backends.tensorrt import runner as trt_runner
from trimvla.runtime.backends.tensorrt.device import Device, find_device
from trimvla.runtime.backends.tensorrt.engine_cache import EngineRecord
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.schema_1 import STAGES
from trimvla.runtime.errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    ConfigError,
    SpecError,
)
from trimvla.runtime.inference.policy import Policy

ORIN = Device("Orin (nvgpu)", "L4T 36.4.3")
KEPT = (0, 2)
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
# one for each bucket
SHORT = "stack the red cube"
LONG = "pick up the red blue green cube"


@dataclass
class Bench:
    """A bundle, its engines, and the fakes below them."""

    bundle: Path
    folder: Path
    cuda: FakeCuda
    trt: FakeTrt

    def write_engine(
        self, name: str, *, device: Device = ORIN, version: str = "10.3.0", data: bytes = b""
    ) -> Path:
        manifest = bundles.load(self.bundle)
        key = engines.stage_key(
            manifest, name, backend="tensorrt", version=version, device=device, workspace_bytes=1
        )
        spec = manifest.stages[name]
        dynamic = {
            tensor.name: tensor
            for tensor in spec.inputs
            if tensor.name in engines.symbolic_inputs(spec)
        }
        profiles = [dict.fromkeys(dynamic, (1, bucket)) for bucket in key.buckets]
        data = data or serialised(self.bundle / spec.file, profiles)
        digest = hashlib.sha256(data).hexdigest()
        return engines.store(
            self.folder,
            data,
            EngineRecord(
                key=key,
                sha256=digest,
                bytes=len(data),
                seconds=0,
                precision="float32",
                read_back={},
            ),
        )

    def open(self) -> Policy:
        return Policy.load(self.bundle, backend="tensorrt", engines=self.folder)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bench:
    """With the engines of a trimmed bundle; memory is unified where a test says so."""
    cuda_api = FakeCuda(integrated=getattr(request, "param", False))
    made = Bench(
        write_bundle(tmp_path / "bundle", kept=KEPT),
        tmp_path / "engines",
        cuda_api,
        FakeTrt(cuda_api),
    )
    monkeypatch.setattr(cuda, "load_runtime", lambda: made.cuda)
    monkeypatch.setattr(trt_library, "load_trt", made.trt.library)
    monkeypatch.setattr(trt_runner, "find_device", lambda: ORIN)
    for stage in STAGES:
        made.write_engine(stage)
    return made


unified = pytest.mark.parametrize("bench", [False, True], ids=["card", "unified"], indirect=True)


@unified
@pytest.mark.parametrize("stage", INPUTS)
def test_every_stage_keeps_the_contract(bench: Bench, stage: str) -> None:
    spec = bundles.load(bench.bundle).stages[stage]
    runner = create("tensorrt", bench.bundle / spec.file, spec, engines=bench.folder)
    check_runner(runner, INPUTS[stage])
    expected = create("onnxruntime", bench.bundle / spec.file, spec).run(INPUTS[stage])
    for name, value in runner.run(INPUTS[stage]).items():
        np.testing.assert_array_equal(value, expected[name])
    assert runner.describe() | {"engine": ""} == {
        "backend": "tensorrt",
        "version": "10.3.0",
        "provider": ORIN.gpu,
        "engine": "",
        "precision": "float32",
        "memory": "unified" if bench.cuda.integrated else "pinned",
    }
    runner.close()
    assert not bench.cuda.live


@unified
def test_the_chain_keeps_the_contract(bench: Bench) -> None:
    manifest = bundles.load(bench.bundle)
    chain = open_chain(bench.bundle, manifest, backend="tensorrt", engines=bench.folder)
    check_chain(
        chain,
        open_chain(bench.bundle, manifest),
        {**INPUTS["vision"], **INPUTS["language"], **INPUTS["action"]},
    )
    chain.close()


@unified
def test_a_policy_acts_as_on_onnx_runtime(bench: Bench) -> None:
    with_engines = bench.open()
    with_graphs = Policy.load(bench.bundle)
    for words in (SHORT, LONG, SHORT):
        expected, got = (
            policy.infer(PICTURE, words, seed=3) for policy in (with_graphs, with_engines)
        )
        np.testing.assert_array_equal(got.sample, expected.sample)
        np.testing.assert_array_equal(got.kept, KEPT)
        assert got.milliseconds.keys() == expected.milliseconds.keys()
        assert min(got.milliseconds.values()) > 0
    with_engines.close()
    assert not bench.cuda.live


@pytest.mark.parametrize(
    ("bench", "copies", "buffers"), [(False, 4 + 2, 8), (True, 0, 2)], indirect=["bench"]
)
def test_only_what_goes_in_and_what_comes_out_is_copied(
    bench: Bench, copies: int, buffers: int
) -> None:
    policy = bench.open()
    # unified: what lies between stages; and the scratch memory
    assert bench.cuda.calls["cudaMalloc"] == buffers + 1
    bench.cuda.calls.clear()
    policy.infer(PICTURE, LONG)
    # four inputs, the actions and the kept tokens
    assert bench.cuda.calls["cudaMemcpyAsync"] == copies
    assert bench.cuda.calls["cudaGraphLaunch"] == len(STAGES)
    assert bench.cuda.calls["cudaStreamSynchronize"] == 1


def test_every_bucket_is_captured_once_and_nothing_is_made_later(bench: Bench) -> None:
    policy = bench.open()
    graphs = 1 + len(BUCKETS) + 1
    assert bench.cuda.calls["cudaGraphInstantiate"] == len(bench.trt.contexts) == graphs
    before = dict(bench.cuda.live)
    for words in (SHORT, LONG, LONG, SHORT):
        policy.infer(PICTURE, words)
    # to load, and to capture
    assert [context.executions for context in bench.trt.contexts] == [2] * graphs
    assert bench.cuda.live == before


def test_stages_meet_at_one_address(bench: Bench) -> None:
    bench.open()
    vision, *language, action = bench.trt.contexts
    assert len(language) == len(BUCKETS)
    for context in language:
        assert context.addresses == language[0].addresses
        assert context.addresses["visual"] == vision.addresses["visual"]
        assert context.addresses["cognition"] == action.addresses["cognition"]
    all_addresses = {**vision.addresses, **language[0].addresses, **action.addresses}
    assert len(set(all_addresses.values())) == len(all_addresses)


def test_another_prompt_length_is_refused(bench: Bench) -> None:
    inputs = {**INPUTS["language"], "input_ids": np.zeros((1, 13), np.int64)}
    with pytest.raises(
        SpecError, match=r"expected a prompt length of \[12, 16\] for 'input_ids', got 13"
    ):
        bench.open().runners["language"].run(inputs)


ABSENT = "no engine of stage 'language' for this device"


@pytest.mark.parametrize(
    ("instead", "message"),
    [
        (
            None,
            (
                f"{ABSENT} in .*engines: run `trimvla build .*bundle --backend tensorrt --out"
                " .*engines`"
            ),
        ),
        (
            {"version": "10.7.0"},
            (
                rf"{ABSENT}.*\(there is one for version '10.7.0' \(here '10.3.0'\)\): run `trimvla"
                r" build"
            ),
        ),
        (
            {"device": Device("Thor", "L4T 38.2")},
            rf"{ABSENT}.*gpu 'Thor' \(here 'Orin.*jetpack 'L4T 38.2' \(here",
        ),
        (
            {"data": b"half an engine"},
            r"language-.*\.engine: tensorrt 10.3.0 cannot load it: magicTag does not match",
        ),
    ],
    ids=["none", "version", "device", "rubbish"],
)
def test_another_engine_is_refused(bench: Bench, instead: dict | None, message: str) -> None:
    for path in bench.folder.glob("language-*"):
        path.unlink()
    if instead is not None:
        bench.write_engine("language", **instead)
    with pytest.raises(BackendError, match=message):
        bench.open()
    assert not bench.cuda.live


def test_a_damaged_engine_is_refused(bench: Bench) -> None:
    next(bench.folder.glob("vision-*.engine")).write_bytes(b"")
    with pytest.raises(
        BackendError, match=r"no engine of stage 'vision' .*but damaged.*trimvla build"
    ):
        bench.open()


def test_an_engine_of_another_graph_is_refused(bench: Bench) -> None:
    bench.write_engine("vision", data=serialised(bench.bundle / "action.onnx", []))
    with pytest.raises(BackendError, match=r"expected inputs \{'image'.*got \{'cognition'"):
        bench.open()


def test_an_engine_without_a_buckets_profile_is_refused(bench: Bench) -> None:
    bench.write_engine(
        "language", data=serialised(bench.bundle / "language.onnx", [{"input_ids": (1, 12)}])
    )
    with pytest.raises(BackendError, match=r"profiles for prompt lengths \[12, 16\], got \[12\]"):
        bench.open()


@pytest.mark.parametrize(
    "call",
    ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"],
)
def test_what_the_library_refuses_is_told(bench: Bench, call: str) -> None:
    bench.trt.refuse = call
    with pytest.raises(
        BackendError, match=rf"tensorrt 10.3.0 refused {call}.*API usage error in {call}"
    ):
        bench.open()
    assert not bench.cuda.live


def test_another_gpu_than_asked_for_is_refused(bench: Bench) -> None:
    with pytest.raises(
        BackendError, match=r"expected GPU 'H100' for 'provider', this machine's is 'Orin"
    ):
        Policy.load(bench.bundle, backend="tensorrt", provider="H100", engines=bench.folder)


def test_without_a_gpu_it_says_so(bench: Bench) -> None:
    bench.cuda.devices = 0
    with pytest.raises(BackendError, match=r"cudaGetDeviceCount: .*cudaErrorNoDevice"):
        bench.open()


def test_a_failing_call_is_named(bench: Bench) -> None:
    device = cuda.Cuda()
    with pytest.raises(BackendError, match=r"cudaMemsetAsync: words for cudaErrorInvalidValue"):
        device.call("cudaMemsetAsync", 1, 0, 1, bench.cuda.stream(device.stream))
    device.close()


def test_engines_are_for_backends_that_are_built(tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match="'engines' is for tensorrt and tensorrt-rtx: backend 'onnxruntime'"
    ):
        Policy.load(write_bundle(tmp_path), engines=tmp_path)


def test_a_graph_outside_of_its_bundle_has_no_engine(tmp_path: Path) -> None:
    spec = bundles.load(write_bundle(tmp_path / "bundle")).stages["vision"]
    with pytest.raises(BundleError, match=r"manifest\.json"):
        create("tensorrt", tmp_path / "vision.onnx", spec)


def test_without_cuda_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MODULE", "cuda.bindings.no_such_module")
    with pytest.raises(
        BackendError, match=r"cuda-python is not installed .*cuda-bindings>=12.8,<13' on JetPack 6"
    ):
        cuda.Cuda()


# The real libraries: what they have, and what they say where there is no GPU.


@pytest.mark.parametrize(
    ("fake", "name"),
    [(Runtime, "Runtime"), (Engine, "ICudaEngine"), (Context, "IExecutionContext")],
)
def test_the_fake_has_nothing_that_tensorrt_has_not(fake: type, name: str) -> None:
    real = getattr(pytest.importorskip("tensorrt_rtx_bindings"), name)
    called = {each for each in vars(fake) if not each.startswith("_")}
    assert called
    assert not called - set(dir(real))


def test_cuda_python_has_every_name_that_is_used() -> None:
    api = pytest.importorskip("cuda.bindings.runtime")
    used = set(re.findall(r"\bcuda[A-Z]\w+", Path(cuda.__file__).read_text()))
    members = {
        each
        for kind in ("cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode")
        for each in dir(getattr(api, kind))
    }
    assert len(used) > 20
    assert not used - set(dir(api)) - members


def test_a_real_library_takes_the_mapped_file_and_refuses_what_is_no_engine(tmp_path: Path) -> None:
    library = library_or_skip()
    (tmp_path / "rubbish.engine").write_bytes(bytes(1000))
    with pytest.raises(BackendError, match=r"rubbish\.engine: tensorrt-rtx .* cannot load it: \w+"):
        trt_engine.load(
            library, library.module.Runtime(library.logger), tmp_path / "rubbish.engine"
        )


@pytest.mark.skipif(find_device().has_gpu, reason="there is a GPU")
def test_a_real_cuda_without_a_gpu_is_one_clear_error() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(BackendError, match="cudaGetDeviceCount: "):
        cuda.Cuda()


@pytest.fixture
def on_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path, str]:
    """A bundle, the folder of its engines, built here, and the backend; skips where engines cannot
    run.
    """
    if not find_device().has_gpu:
        pytest.skip("no GPU: engines run on one only")
    for backend, module in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx_bindings")):
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        bundle = write_bundle(tmp_path / "bundle", kept=KEPT)
        # no sizes: memory is not asked
        bundles.write(bundle, msgspec.structs.replace(bundles.load(bundle), policy={}))
        words = ["build", str(bundle), "--backend", backend, "--out", str(tmp_path / "engines")]
        assert cli.main(words) == 0, capsys.readouterr().err
        return bundle, tmp_path / "engines", backend
    pytest.skip("neither TensorRT nor TensorRT for RTX is installed")


def test_on_a_gpu(on_gpu: tuple[Path, Path, str]) -> None:
    bundle, folder, backend = on_gpu
    manifest = bundles.load(bundle)
    for stage, inputs in INPUTS.items():
        spec = manifest.stages[stage]
        runner = create(backend, bundle / spec.file, spec, engines=folder)
        check_runner(runner, inputs)
        runner.close()
    chain = open_chain(bundle, manifest, backend=backend, engines=folder)
    inputs = {**INPUTS["vision"], **INPUTS["language"], **INPUTS["action"]}
    check_chain(chain, open_chain(bundle, manifest), inputs, tolerance=1e-3)
    chain.close()


def test_a_host_chain_runs_stages_in_order(tmp_path: Path) -> None:
    chain = open_chain(write_bundle(tmp_path), bundles.load(tmp_path))
    assert isinstance(chain, HostChain)
    assert list(chain.runners) == list(STAGES)


def test_engines_of_the_machine_are_found_by_everybody(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names no folder looks where the installer builds, then in the user's cache; who names
    one, only there.
    """
    own = tmp_path / "home"
    empty = tmp_path / "empty"
    monkeypatch.setattr(engine_folders, "CACHE", own)
    monkeypatch.setattr(engine_folders, "SYSTEM", bench.folder)
    Policy.load(bench.bundle, backend="tensorrt").close()
    spec = bundles.load(bench.bundle).stages["vision"]
    create("tensorrt", bench.bundle / spec.file, spec).close()
    with pytest.raises(
        BackendError, match=f"no engine of stage 'vision' for this device in {empty}"
    ):
        Policy.load(bench.bundle, backend="tensorrt", engines=empty)
    own.mkdir()
    bench.folder.rename(own / engines.content_digest(bundles.load(bench.bundle)))
    Policy.load(bench.bundle, backend="tensorrt").close()
    bench.folder.mkdir()
    Policy.load(bench.bundle, backend="tensorrt").close()
    monkeypatch.setattr(engine_folders, "CACHE", empty)
    inside = empty / engines.content_digest(bundles.load(bench.bundle))
    with pytest.raises(
        BackendError, match=f"in {bench.folder}: run `trimvla build .*; there is none in {inside}"
    ):
        Policy.load(bench.bundle, backend="tensorrt")


def test_new_engines_go_where_they_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_folders, "CACHE", tmp_path / "home")
    monkeypatch.setattr(engine_folders, "SYSTEM", tmp_path / "system")
    assert engine_folders.to_build_in(None, "tiny") == tmp_path / "home" / "tiny"
    (tmp_path / "system").mkdir()
    assert engine_folders.to_build_in(None, "tiny") == tmp_path / "system"
    assert engine_folders.to_build_in(tmp_path, "tiny") == tmp_path
    assert engine_folders.to_look_in(None, "tiny") == (
        tmp_path / "system",
        tmp_path / "home" / "tiny",
    )


def test_a_user_without_a_home_is_told_to_name_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_folders, "CACHE", Path("~no-such-user-here/engines"))
    monkeypatch.setattr(engine_folders, "SYSTEM", tmp_path / "none")
    assert engine_folders.to_look_in(None, "tiny") == ()
    with pytest.raises(ConfigError, match="name one with --out"):
        engine_folders.to_build_in(None, "tiny")


@unified
def test_a_lost_device_is_told_from_a_bad_call(bench: Bench) -> None:
    """After a sticky error no call works; closing then has nothing to free, and does not hide the
    reason.
    """
    policy = bench.open()
    policy.infer(PICTURE, SHORT)
    bench.cuda.lost = True
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match=r"cuda\w+: .*cudaErrorIllegalAddress"):
            policy.infer(PICTURE, SHORT)
    policy.close()


def test_a_refused_argument_is_no_lost_device(bench: Bench) -> None:
    device = cuda.Cuda()
    with pytest.raises(BackendError, match="cudaErrorInvalidValue") as caught:
        device.call("cudaFree", 12345)
    assert not isinstance(caught.value, BackendUnavailableError)
    device.synchronize()
    device.close()
