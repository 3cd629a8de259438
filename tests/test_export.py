"""Bundles: parity with torch, what is in the graphs, the same bytes twice, and nothing left behind
on failure.
"""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tiny_policy import TINY, export_cogact, random_policy
from tokenizers import Tokenizer, models, pre_tokenizers

from trimvla.export import bundle as bundle_module
from trimvla.export.graphs import to_onnx
from trimvla.export.graphs.exporter import OPSET, quiet_exporter
from trimvla.export.graphs.stages import stage_spec
from trimvla.export.graphs.to_onnx import export_stage, share_weights
from trimvla.export.parity import Parity
from trimvla.export.verify import checkpoint_beside, open_runners, parity, verify_bundle
from trimvla.policies.cogact.checkpoint import save
from trimvla.policies.cogact.stages import GUIDED, STAGES
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.manifest import Plan, modes_of
from trimvla.runtime.errors import BundleError, CheckpointError, ConfigError
from trimvla.runtime.inference.policy import Known, Policy

STATISTICS = {
    "lab": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 6 + [False]}}
}
# elements that a graph may hold besides its parameters: shapes, axes, normalisation constants
MARGIN = 300


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = (
        "<pad>",
        "<s>",
        "</s>",
        "<empty>",
        "<unk>",
        *["In", ":", "What", "action", "should", "the", "robot", "take", "to", "?", "Out", "lift"],
    )
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def policy():
    """Random weights that half precision holds exactly, as a shipped policy's are."""
    torch.set_num_threads(1)
    made = random_policy()
    for parameter in made.parameters():
        parameter.data = parameter.data.half().float()
    return made


def export(policy, tokenizer, out, **options):
    settings = {
        "statistics_key": "lab",
        "control_hz": 5.0,
        "created_utc": "2026-01-01T00:00:00+00:00",
        **options,
    }
    return export_cogact(policy, Plan(), STATISTICS, tokenizer, out, **settings)


@pytest.fixture(scope="module")
def bundle(policy, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export(policy, tokenizer, out)
    return out


@pytest.fixture
def quick(monkeypatch, bundle):
    """Take the graphs of the finished bundle instead of exporting them again."""

    def copy(policy, stage, directory):
        shutil.copyfile(bundle / f"{stage.name}.onnx", directory / f"{stage.name}.onnx")
        return bundles.load(bundle).stages[stage.name]

    monkeypatch.setattr(bundle_module, "export_to", copy)


def test_bundle_agrees_with_torch_at_every_boundary(bundle, policy):
    report = verify_bundle(bundle, policy, samples=2)
    assert report.ok, report.failed
    assert report.compared == 4 * len(TINY.prompt.buckets) * 2
    assert set(report.groups) == {"visual", "cognition", "actions", "end_to_end"}
    assert all(row.worst < 1e-4 and row.cosine > 0.999999 for row in report.groups.values())
    assert msgspec.json.decode(msgspec.json.encode(report), type=Parity) == report


def test_manifest_carries_config_plan_and_proof(bundle):
    manifest = bundles.load(bundle)
    assert manifest.name == "tiny"
    assert manifest.policy == json.loads(json.dumps(TINY.to_dict()))
    assert manifest.plan == Plan()
    assert manifest.parity["ok"]
    assert manifest.prompt is not None
    assert manifest.prompt.suffix_ids == (TINY.prompt.empty_id, TINY.prompt.eos_id)
    assert set(manifest.files) == {
        "vision.onnx",
        "language.onnx",
        "action.onnx",
        "tokenizer.json",
        "statistics.json",
    }


def test_the_runtime_runs_it_as_torch_does(bundle, policy):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    noise = rng.standard_normal((16, 7), dtype=np.float32)
    result = Policy.load(bundle).infer(image, "lift", noise=noise)
    ids = [
        1,
        *Tokenizer.from_file(str(bundle / "tokenizer.json"))
        .encode(TINY.prompt.template.format(instruction="lift"))
        .ids,
        3,
        2,
    ]
    with torch.no_grad():
        expected = policy(
            torch.from_numpy(image)[None],
            torch.tensor([ids]),
            torch.tensor([len(ids) - 1]),
            torch.from_numpy(noise)[None],
        )
    np.testing.assert_allclose(result.sample, expected[0].numpy(), atol=1e-5)


def elements(graph):
    return sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)


@pytest.mark.parametrize(("stage", "part"), [("vision", "vision"), ("language", "language")])
def test_no_dead_weight_is_in_a_graph(bundle, policy, stage, part):
    graph = onnx.load(bundle / f"{stage}.onnx").graph
    parameters = sum(p.numel() for p in getattr(policy, part).parameters())
    assert parameters <= elements(graph) < parameters + MARGIN


def test_last_layer_computes_the_cognition_token_only(bundle):
    graph = onnx.load(bundle / "language.onnx").graph
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in graph.value_info
    }
    wide = [
        shapes[node.output[0]]
        for node in graph.node
        if node.op_type == "MatMul" and node.output[0] in shapes
    ]
    hidden = [shape for shape in wide if shape[-1] == TINY.language.mlp_hidden]
    assert len(hidden) == 2 * TINY.language.layers
    assert hidden.count([1, 1, TINY.language.mlp_hidden]) == 2


def test_graphs_keep_nothing_of_the_machine(bundle, repo_root):
    for stage in STAGES:
        model = onnx.load(bundle / f"{stage.name}.onnx")
        raw = (bundle / f"{stage.name}.onnx").read_bytes()
        assert str(repo_root).encode() not in raw
        assert b"site-packages" not in raw
        assert [opset.version for opset in model.opset_import] == [20]


def test_the_prompt_is_one_symbolic_axis(bundle):
    (visual, ids, last) = onnx.load(bundle / "language.onnx").graph.input
    assert [d.dim_param or d.dim_value for d in ids.type.tensor_type.shape.dim] == [1, "prompt"]
    for value in (visual, last):
        assert all(d.dim_value for d in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_same_policy_gives_the_same_bytes(bundle, policy, stage, tmp_path):
    (path,) = export_stage(policy, stage, tmp_path / f"{stage.name}.onnx")
    assert path.read_bytes() == (bundle / path.name).read_bytes()


def test_weights_that_half_precision_holds_are_stored_in_half(bundle, policy):
    stored = {t.name: t for t in onnx.load(bundle / "language.onnx").graph.initializer}
    table = onnx.numpy_helper.to_array(stored["language.embed_tokens.weight.f16"])
    assert table.dtype == np.float16
    np.testing.assert_array_equal(
        table.astype(np.float32), policy.language.embed_tokens.weight.detach().numpy()
    )
    assert (bundle / "language.onnx").stat().st_size < 3.5 * sum(
        p.numel() for p in policy.language.parameters()
    )


def test_other_weights_stay_in_single_precision(tmp_path):
    (path,) = export_stage(random_policy(), STAGES[0], tmp_path / "vision.onnx")
    assert {t.data_type for t in onnx.load(path).graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }


def test_large_weights_lie_beside_the_graph(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 0)
    graph, data = export_stage(policy, STAGES[0], tmp_path / "vision.onnx")
    assert (graph.name, data.name) == ("vision.onnx", "vision.onnx.data")
    assert graph.stat().st_size < data.stat().st_size
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    (runner,) = open_runners(tmp_path, {"vision": stage_spec(TINY, STAGES[0], graph.name)}).values()
    with torch.no_grad():
        np.testing.assert_allclose(
            runner.run({"image": image.numpy()})["visual"], policy.vision(image), atol=1e-5
        )


def test_a_bundle_that_differs_from_torch_is_not_written(bundle, tokenizer, tmp_path, quick):
    with pytest.raises(BundleError, match="differs from torch"):
        export(random_policy(seed=5), tokenizer, tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_old_bundle(bundle, policy, tokenizer, tmp_path, quick):
    out = shutil.copytree(bundle, tmp_path / "kept")
    with pytest.raises(BundleError, match="nowhere"):
        export(policy, tokenizer, out, statistics_key="nowhere", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert bundles.load(out) == bundles.load(bundle)


def test_an_existing_bundle_is_replaced_only_when_asked(bundle, policy, tokenizer, tmp_path, quick):
    out = shutil.copytree(bundle, tmp_path / "tiny")
    with pytest.raises(ConfigError, match="expected no bundle"):
        export(policy, tokenizer, out)
    export(policy, tokenizer, out, control_hz=10.0, overwrite=True)
    assert bundles.load(out).action.control_hz == 10.0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_missing_tokenizer_says_where_it_comes_from(policy, tmp_path):
    with pytest.raises(ConfigError, match="LLaMA-2"):
        export(policy, tmp_path / "tokenizer.json", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_the_checkpoint_beside_the_bundle(bundle, policy):
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors"):
        verify_bundle(bundle)
    path = save(policy, bundle.with_name("tiny.safetensors"))
    try:
        assert verify_bundle(bundle, samples=1).ok
        assert checkpoint_beside(bundle).cfg == TINY
    finally:
        path.unlink()


def test_bundles_of_one_policy_share_its_checkpoint(bundle, policy):
    path = save(policy, bundle.with_name(f"{TINY.name}.safetensors"))
    other = bundle.with_name("another-plan")
    shutil.copytree(bundle, other)
    try:
        assert checkpoint_beside(other).cfg == TINY
    finally:
        path.unlink()
        shutil.rmtree(other)


def test_verify_names_the_boundary_that_differs(bundle, policy):
    other = random_policy()
    other.load_state_dict(policy.state_dict())
    with torch.no_grad():
        other.language.norm.weight.mul_(1.01)
    runners = open_runners(bundle, bundles.load(bundle).stages)
    report = parity(other, runners, samples=1, seed=0)
    assert {failure.group for failure in report.failed} >= {"cognition"}
    assert report.groups["visual"].worst < 1e-4
    assert report.groups["actions"].worst < 1e-4


def test_verify_refuses_another_policy(bundle):
    other = random_policy(msgspec.structs.replace(TINY, name="other"))
    with pytest.raises(BundleError, match="config of policy 'other'"):
        verify_bundle(bundle, other)


def test_the_guided_stage_reads_the_weights_of_the_plain_one(bundle, policy, tmp_path):
    directory = shutil.copytree(bundle, tmp_path / "guided")
    plain = bundles.load(directory)
    stages = {**plain.stages, GUIDED.name: bundle_module.export_to(policy, GUIDED, directory)}
    modes = modes_of(tuple(stages))
    described = msgspec.structs.replace(plain, stages=stages, modes=modes)
    manifest = bundle_module.prove(policy, described, directory)
    row = manifest.parity["groups"]["guided_actions"]
    assert row["compared"] == 2 * len(TINY.prompt.buckets) and row["worst"] < 1e-4
    assert set(manifest.files) - set(plain.files) == {"action_guided.onnx"}
    stored = onnx.load(directory / "action_guided.onnx", load_external_data=False).graph.initializer
    outside = {t.name for t in stored if t.data_location == onnx.TensorProto.EXTERNAL}
    assert len(outside) >= 2 * TINY.head.depth and not any(len(t.raw_data) >= 512 for t in stored)
    guided = Policy.load(directory, guided=True)
    image = np.zeros((32, 32, 3), np.uint8)
    rows = np.full((16, 7), 0.05)
    free = Policy.load(directory).infer(image, "lift", seed=1).sample
    same = guided.infer(image, "lift", seed=1, known=Known(rows, np.zeros(16, np.float32))).sample
    np.testing.assert_array_equal(same, free)
    kept = guided.infer(image, "lift", seed=1, known=Known(rows, np.ones(16, np.float32))).actions
    np.testing.assert_allclose(kept[:, :6], rows[:, :6], atol=1e-6)


@pytest.mark.slow
def test_weights_beside_a_large_graph_are_shared_too(policy, tmp_path, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(to_onnx, "INLINE_LIMIT", 0)
        export_stage(policy, STAGES[2], tmp_path / "action.onnx")
    (path,) = export_stage(policy, GUIDED, tmp_path / "action_guided.onnx")
    stored = onnx.load(path, load_external_data=False).graph.initializer
    places = {entry.value for t in stored for entry in t.external_data if entry.key == "location"}
    assert places == {"action.onnx.data"}


def test_weights_of_two_lengths_do_not_share_a_place(tmp_path):
    """Rows 0 to 134 lie at the beginning of rows 0 to 151; TensorRT refuses such a network."""
    rows = np.arange(152)
    owner = model_of({"rows": rows})
    onnx.save(owner, tmp_path / "action.onnx")
    user = ir.from_proto(model_of({"all": rows, "some": rows[:135]}))
    path = tmp_path / "action_guided.onnx"
    share_weights(user, path, tmp_path / "action.onnx")
    ir.save(user, path)
    written = onnx.load(path, load_external_data=False).graph.initializer
    stored = {tensor.name: tensor for tensor in written}
    assert stored["all"].data_location == onnx.TensorProto.EXTERNAL
    assert stored["some"].data_location != onnx.TensorProto.EXTERNAL
    for tensor in onnx.load(path).graph.initializer:
        count = {"all": 152, "some": 135}[tensor.name]
        assert np.array_equal(numpy_helper.to_array(tensor), rows[:count])


def model_of(weights):
    """A graph that gives its weights."""
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [onnx.helper.make_node("Identity", [name], [f"{name}.out"]) for name in weights]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{name}.out", onnx.TensorProto.INT64, array.shape)
        for name, array in weights.items()
    ]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "weights", [], outputs, tensors))


def test_torchs_table_of_operators_is_built_once_and_graphs_stay_the_same() -> None:
    """Which costs a second of processor; what torch builds for itself gives the same graph."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    table = registration.ONNXRegistry
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU()).eval()

    def graph() -> bytes:
        made = torch.onnx.export(
            module, (torch.zeros(2, 4),), dynamo=True, opset_version=OPSET, verbose=False
        )
        assert made is not None
        to_onnx.strip(made.model)
        return made.model_proto.SerializeToString(deterministic=True)

    own = graph()
    with quiet_exporter():
        first = graph()
        again = graph()
        assert table.from_torchlib(opset_version=OPSET) is table.from_torchlib(opset_version=OPSET)
    assert own == first == again
    outside = table.from_torchlib(opset_version=OPSET)
    assert outside is not table.from_torchlib(opset_version=OPSET)  # others get their own again
