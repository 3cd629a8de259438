"""`trimvla build` really parses and builds; what cannot be built is refused with its reason.

Nothing here is a fake.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import tiny_bundle
from tests.trt_parts import bundle_with, library_or_skip
from trimvla.export.tensorrt import build as to_tensorrt
from trimvla.export.tensorrt.read_back import asked_types, read_back
from trimvla.launch import cli
from trimvla.runtime.backends.tensorrt.device import Device, find_device
from trimvla.runtime.backends.tensorrt.library import TrtLibrary, load_trt
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import BackendError

FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="session")
def library() -> TrtLibrary:
    return library_or_skip()


def run_verb(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> dict:
    assert cli.main(["build", *map(str, words), "--backend", "tensorrt-rtx", "--json"]) == status
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_was_built_is_read_back_or_not_claimed(library, tmp_path, capsys) -> None:
    out = tmp_path / "engines"
    built = run_verb(capsys, tiny_bundle.write_bundle(tmp_path / "tiny"), "--out", out)["engines"]
    records = [json.loads(path.read_text()) for path in out.glob("*.json")]
    assert len(records) == len(built)
    for record in records:
        # the tiny language stage has no product of matrices
        assert record["precision"] in ("float32", "none")
        assert record["read_back"]["ok"] is (True if find_device().has_gpu else None)
        assert record["read_back"]["ok"] or "machine has none" in record["read_back"]["why"]


def test_the_verb_builds_and_then_takes_from_the_cache(library, tmp_path, capsys) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    out = tmp_path / "engines"
    first = run_verb(capsys, bundle, "--out", out)
    assert first.keys() == {"ok", "engines"}
    assert [engine["stage"] for engine in first["engines"]] == ["vision", "language", "action"]
    for engine in first["engines"]:
        assert engine.keys() == {"stage", "file", "bytes", "seconds", "precision"}
        assert Path(engine["file"]).stat().st_size == engine["bytes"]
        assert engine["seconds"] > 0
    before = inodes(first)
    assert run_verb(capsys, bundle, "--out", out) == first
    assert inodes(first) == before


def inodes(result: dict) -> list[int]:
    """Another number is another file: built again."""
    return [Path(engine["file"]).stat().st_ino for engine in result["engines"]]


def test_a_damaged_engine_is_built_again(library, tmp_path, capsys) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    out = tmp_path / "engines"
    first = run_verb(capsys, bundle, "--out", out)
    before = inodes(first)
    Path(first["engines"][1]["file"]).write_bytes(b"half an engine")
    again = run_verb(capsys, bundle, "--out", out)
    assert [one == two for one, two in zip(before, inodes(again), strict=True)] == [
        True,
        False,
        True,
    ]
    assert Path(again["engines"][1]["file"]).stat().st_size == again["engines"][1]["bytes"] > 1000


def test_there_is_a_profile_for_every_bucket(library, tmp_path) -> None:
    manifest = bundles.load(tiny_bundle.write_bundle(tmp_path / "tiny"))
    spec = manifest.stages["language"]
    parsed = to_tensorrt.parse(library, tmp_path / "tiny" / spec.file)
    config = parsed.builder.create_builder_config()
    assert manifest.prompt is not None
    to_tensorrt.add_profiles(parsed.builder, config, spec, manifest.prompt.buckets)
    assert config.num_optimization_profiles == len(tiny_bundle.BUCKETS)


def action_stage(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A graph at the tiny action stage's border."""
    inputs = [
        helper.make_tensor_value_info("cognition", FLOAT, [1, tiny_bundle.WIDTH]),
        helper.make_tensor_value_info("noise", FLOAT, [1, tiny_bundle.HORIZON, tiny_bundle.DIM]),
    ]
    outputs = [helper.make_tensor_value_info("actions", FLOAT, None)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "planted", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_an_unsupported_operator_is_named(library, tmp_path, capsys) -> None:
    planted = action_stage(helper.make_node("Unique", ["noise"], ["actions"], name="find_unique"))
    bundle = bundle_with(tmp_path / "planted", action=planted)
    error = run_verb(capsys, bundle, "--out", tmp_path / "engines", status=1)["error"]
    assert "action.onnx: node 'find_unique' (operator Unique): tensorrt-rtx" in error
    assert "does not support it" in error
    assert not list((tmp_path / "engines").glob("action*"))


def test_a_limit_that_only_the_builder_knows_is_told(library, tmp_path, capsys) -> None:
    nodes = (
        helper.make_node("Expand", ["noise", "shape"], ["large"]),
        helper.make_node("TopK", ["large", "k"], ["actions", "which"], axis=0, name="too_many"),
    )
    planted = action_stage(*nodes, shape=np.array([5000, 16, 7]), k=np.array([4000]))
    bundle = bundle_with(tmp_path / "planted", action=planted)
    error = run_verb(capsys, bundle, "--out", tmp_path / "engines", status=1)["error"]
    assert "stage 'action'" in error
    assert "too_many" in error
    assert "3840" in error


def test_a_file_that_is_no_graph_is_one_clear_error(library, tmp_path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00not a graph")
    with pytest.raises(BackendError, match=r"noise\.onnx: tensorrt-rtx .* found no graph in it"):
        to_tensorrt.parse(library, tmp_path / "noise.onnx")
    with pytest.raises(BackendError, match=r"absent\.onnx: tensorrt-rtx .* cannot parse the graph"):
        to_tensorrt.parse(library, tmp_path / "absent.onnx")


def test_another_precision_than_the_manifest_says_is_an_error(library, tmp_path, capsys) -> None:
    bundle = bundle_with(tmp_path / "half", precision="float16")
    error = run_verb(capsys, bundle, "--out", tmp_path / "engines", status=1)["error"]
    assert "expected float16 as the manifest says, the graph is in float32" in error


def test_a_missing_library_says_what_to_install(tmp_path, capsys) -> None:
    try:
        load_trt("tensorrt")
    except BackendError:
        pass
    else:
        pytest.skip("TensorRT is installed here")
    bundle = tiny_bundle.write_bundle(tmp_path / "tiny")
    assert cli.main(["build", str(bundle), "--out", str(tmp_path / "engines")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "backend 'tensorrt' is not installed" in error
    assert "JetPack" in error


def test_a_small_board_is_refused_before_anything_is_built(
    tabletop_bundle, tmp_path, capsys
) -> None:
    manifest = bundles.load(tabletop_bundle)
    policy = json.loads(json.dumps(manifest.policy))
    policy["language"]["vocab"] = 40_000_000  # 29 GiB of embeddings
    bundle = tiny_bundle.write_bundle(tmp_path / "huge")
    bundles.write(bundle, msgspec.structs.replace(tiny_bundle.manifest(), policy=policy))
    error = run_verb(capsys, bundle, "--board", "orin-nx", "--out", tmp_path / "engines", status=1)[
        "error"
    ]
    assert "Orin NX 16 GB is too small" in error
    assert "stage 'language' alone" in error
    assert not (tmp_path / "engines").exists()


def test_an_unknown_board_lists_the_known_ones(tabletop_bundle, tmp_path, capsys) -> None:
    error = run_verb(capsys, tabletop_bundle, "--board", "abacus", "--out", tmp_path, status=1)[
        "error"
    ]
    assert "['orin-nano', 'orin-nx', 'orin', 'thor'] for 'board', got 'abacus'" in error


def test_without_a_gpu_nothing_is_claimed_and_with_one_a_bad_engine_is_an_error(
    library, tmp_path
) -> None:
    manifest = bundles.load(tiny_bundle.write_bundle(tmp_path / "tiny"))
    parsed = to_tensorrt.parse(library, tmp_path / "tiny" / manifest.stages["action"].file)
    asked = asked_types(parsed.network)
    assert asked["actions"] == "float32"
    assert read_back(library, b"no engine", asked, Device())["ok"] is None
    with pytest.raises(BackendError, match="does not load on a GPU that is not there"):
        read_back(library, b"no engine", asked, Device(gpu="a GPU that is not there"))


def test_times_are_kept_between_builds(library, tmp_path) -> None:
    """The functions are TensorRT's; TensorRT for RTX has them, warns, and keeps a header."""
    path = tmp_path / "engines" / "times.cache"
    config = library.module.Builder(library.logger).create_builder_config()
    with pytest.warns(DeprecationWarning):
        to_tensorrt.load_timing_cache(config, path)
        to_tensorrt.save_timing_cache(config, path)
        size = path.stat().st_size
        to_tensorrt.load_timing_cache(config, path)
    assert size > 0
