"""What is exported without being held: the same numbers as the in-memory way, going on after a
kill, honest sizes.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from tiny_policy import TINY, official_checkpoint, random_policy, write_official

from trimvla.export.graphs.stages import walk
from trimvla.export.reference.architecture import policy_config
from trimvla.export.streaming import writer as stream
from trimvla.export.streaming.bundle import JOURNAL, Wanted, export_streamed, partial_directory
from trimvla.export.streaming.placeholders import KEY, placeholder_statistics, placeholder_tokenizer
from trimvla.export.streaming.weightless import Skeleton, skeleton, stand_in
from trimvla.export.streaming.writer import Journal, Writer
from trimvla.export.verify import open_runners, parity
from trimvla.launch import cli
from trimvla.policies.cogact.checkpoint import load_official
from trimvla.policies.cogact.half import DTYPES, in_precision
from trimvla.policies.cogact.source import inputs_and_output
from trimvla.policies.cogact.stages import example_inputs, stages
from trimvla.policies.cogact.weights import CheckpointWeights, RandomWeights
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.sizes.cost import shape_by_counts, shape_of
from trimvla.policies.sizes.counts import spread
from trimvla.policies.sizes.memory import plan_memory
from trimvla.policies.trimming.kept import part_of
from trimvla.policies.trimming.plan_by_size import plan_by_sizes
from trimvla.policies.trimming.trimmed import trim
from trimvla.runtime.backends.ort_runner import OrtRunner
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.plan import Plan, TokenPlan, mask, save_plan
from trimvla.runtime.bundle.schema_1 import STAGES
from trimvla.runtime.errors import BundleError, ConfigError
from trimvla.runtime.inference.policy import Policy


@pytest.fixture(autouse=True)
def single_thread():
    torch.set_num_threads(1)


def scattered(cfg: PolicyConfig) -> Plan:
    """A plan whose layers and channels are no prefix: any mix-up of indices shows."""
    hidden = cfg.language.mlp_hidden
    last = cfg.language.layers - 1
    channels = tuple(mask(range(start, hidden, 2)) for start in (0, 1, 1))
    tokens = TokenPlan(keep=8, key=2, after=1)
    return Plan(layers=(0, last - 1, last), channels=channels, tokens=tokens, recompute=(0,))


def wanted(cfg: PolicyConfig, plan: Plan, precision: str) -> Wanted:
    return Wanted(
        cfg,
        plan,
        precision,
        described=inputs_and_output(cfg, KEY),
        statistics=placeholder_statistics(cfg),
        tokenizer=placeholder_tokenizer(cfg.prompt),
    )


@pytest.fixture(scope="module")
def source(fixture_dir: Path) -> tuple[Path, PolicyConfig]:
    """The tiny checkpoint that the public classes wrote, and its sizes."""
    return fixture_dir, policy_config(json.loads((fixture_dir / "architecture.json").read_text()))


@pytest.fixture(scope="module")
def streamed(source: tuple[Path, PolicyConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    directory, cfg = source
    out = tmp_path_factory.mktemp("streamed") / "tiny"
    export_streamed(CheckpointWeights(directory, cfg), wanted(cfg, scattered(cfg), "float32"), out)
    return out


@pytest.mark.slow
def test_every_weight_is_that_of_the_policy_in_memory_to_the_byte(streamed: Path, source) -> None:
    directory, cfg = source
    policy = trim(load_official(directory, cfg), scattered(cfg))
    weights = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
    seen = set()
    for stage in STAGES:
        for tensor in onnx.load(streamed / f"{stage}.onnx").graph.initializer:
            name = tensor.name.removeprefix("policy.").removesuffix(".transposed")
            if name not in weights:
                continue  # a constant of the graph
            stored = onnx.numpy_helper.to_array(tensor)
            expected = weights[name].T if tensor.name.endswith(".transposed") else weights[name]
            assert stored.tobytes() == np.ascontiguousarray(expected).tobytes(), tensor.name
            seen.add(name)
    assert seen == set(weights)


@pytest.mark.slow
def test_the_whole_policy_agrees_with_torch_at_every_boundary(streamed: Path, source) -> None:
    directory, cfg = source
    policy = trim(load_official(directory, cfg), scattered(cfg))
    result = parity(
        policy, open_runners(streamed, bundles.load(streamed).stages), samples=1, seed=0
    )
    assert result.ok, result.failed
    assert {"visual", "cognition", "kept", "actions", "end_to_end"} == set(result.groups)


@pytest.mark.slow
def test_the_bundle_is_complete_and_says_what_was_compared(streamed: Path) -> None:
    manifest = bundles.load(streamed)
    assert manifest.parity["ok"]
    assert "slice" not in manifest.parity["groups"] and "onnx.checker" in manifest.parity["scope"]
    assert {f"{stage}.onnx{end}" for stage in STAGES for end in ("", ".data")} <= set(
        manifest.files
    )
    assert not streamed.with_name("tiny.partial").exists()
    result = Policy.load(streamed).infer(np.zeros((20, 30, 3), np.uint8), "lift")
    assert np.isfinite(result.actions).all()


SENSITIVE = ("LayerNormalization", "Softmax", "ReduceMean", "ReduceL2", "TopK")


def test_half_precision_is_typed_in_the_graph() -> None:
    plan = scattered(TINY)
    stage = stages(TINY, plan)[1]
    bones = skeleton(stand_in(TINY, plan, torch.float16), stage, "language.onnx.data")
    types = {
        (node.op_type, value.dtype)
        for node in bones.model.graph
        for value in node.inputs[:1]
        if value
    }
    assert {dtype for kind, dtype in types if kind in SENSITIVE} == {ir.DataType.FLOAT}
    assert ("MatMul", ir.DataType.FLOAT16) in types
    assert [output.dtype for output in bones.model.graph.outputs] == [
        ir.DataType.FLOAT,
        ir.DataType.INT64,
    ]
    held = {slot.weight: slot.dtype for slot in bones.slots}
    assert held["language.layers.0.input_layernorm.weight"] == torch.float32
    assert held["language.layers.0.mlp.gate_proj.weight"] == torch.float16
    expected = plan_memory(TINY, shape_of(TINY, plan), "float16").weights["language"]
    # of so small a policy, norms are a few percent
    assert bones.bytes == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_torch_is_near_float32(dtype: torch.dtype) -> None:
    policy = random_policy()
    generator = torch.Generator().manual_seed(0)
    exact = example_inputs(TINY, Plan(), TINY.prompt.buckets[0], generator)
    near = dict(exact)
    outputs = [name for _, _, result in walk(policy, exact) for name in result]
    assert [
        name for _, _, result in walk(in_precision(policy, dtype), near) for name in result
    ] == outputs
    for name in outputs:
        assert near[name].dtype == torch.float32
        difference = float(
            (near[name] - exact[name]).abs().max() / exact[name].square().mean().sqrt()
        )
        assert 0 < difference < 20 * torch.finfo(dtype).eps, (name, difference)


@pytest.fixture(scope="module")
def bones() -> Skeleton:
    torch.set_num_threads(1)
    return skeleton(
        stand_in(TINY, Plan(), torch.float32), stages(TINY, Plan())[1], "language.onnx.data"
    )


def test_a_killed_export_goes_on_where_it_was(bones: Skeleton, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stream, "SYNC_BYTES", 1)
    path = tmp_path / "language.onnx"
    told = []

    def write(report) -> None:
        journal = Journal(tmp_path / JOURNAL, {"request": 1})
        Writer(Plan(), RandomWeights(TINY), journal, report).write_stage(bones, path)
        journal.close()

    def die(file: str, count: int) -> None:
        told.append(count)
        if len(told) == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        write(die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not path.exists()
    half = path.with_name(f"{path.name}.data").read_bytes()
    write(lambda file, count: told.append(count))
    assert told[0] > 0, "nothing was found"
    assert len(told) < len(bones.slots)
    whole = path.with_name(f"{path.name}.data").read_bytes()
    assert whole.startswith(half[: told[0]])
    for slot in bones.slots:
        with RandomWeights(TINY).lend(part_of(slot.weight, Plan()).name) as weight:
            expected = weight.T if slot.transposed else weight
            assert whole[slot.offset : slot.end] == expected.contiguous().numpy().tobytes(), (
                slot.name
            )


def test_what_a_changed_request_left_is_not_used(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    left = []
    one = wanted(TINY, scattered(TINY), "float32")
    two = wanted(TINY, scattered(TINY), "float16")
    first, other = (each.request(RandomWeights(TINY)) for each in (one, two))
    for request, resume in ((first, True), (first, True), (other, True), (other, False)):
        with partial_directory(out, request, resume) as (work, journal):
            left.append(journal.done("x"))
            journal.note("x", len(left))
            with pytest.raises(ConfigError, match="no other export"):
                Journal(work / JOURNAL, request)
    assert left == [0, 1, 0, 0]


def test_a_torn_line_of_the_journal_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_text('{"a": 1}\n{"file": "x", "weights": 3}\n{"file": "x", "wei')
    journal = Journal(path, {"a": 1})
    assert journal.fits and journal.done("x") == 3
    journal.note("x", 4)
    journal.close()
    assert Journal(path, {"a": 1}).done("x") == 4


def test_random_weights_depend_on_seed_and_name_alone_and_keep_a_signal() -> None:
    name = "language.layers.1.mlp.down_proj.weight"
    with RandomWeights(TINY).lend(name) as one, RandomWeights(TINY).lend(name) as again:
        assert torch.equal(one, again)
        assert float(one.std()) == pytest.approx(TINY.language.mlp_hidden**-0.5, rel=0.05)
    with RandomWeights(TINY, seed=1).lend(name) as other:
        assert not torch.equal(one, other)


def test_a_plan_by_sizes_costs_what_its_counts_cost() -> None:
    cfg = PRESETS["cogact-base"]
    counts = {"layers": 22, "mlp_keep": 0.75, "tokens": TokenPlan(keep=56)}
    plan = plan_by_sizes(cfg, **counts, cache_interval=5, created_utc="now")
    assert shape_of(cfg, plan) == shape_by_counts(cfg, **counts, cache_interval=5)
    assert plan.layers is not None and plan.layers[0] == 0 and plan.layers[-1] == 31
    assert plan.provenance is not None and plan.provenance.criterion == "sizes alone"
    assert plan_by_sizes(cfg, created_utc="now").dense
    assert spread(5, 1) == (0,) and spread(5, 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_full_size_exports_weigh_what_cost_says(precision: str) -> None:
    cfg = PRESETS["cogact-base"]
    counts = {"layers": 22, "mlp_keep": 0.75, "tokens": TokenPlan(keep=56), "cache_interval": 5}
    policy = stand_in(cfg, plan_by_sizes(cfg, **counts, created_utc="now"), DTYPES[precision])
    expected = plan_memory(cfg, shape_by_counts(cfg, **counts), precision).weights
    for stage, part in zip(STAGES, (policy.vision, policy.language, policy.head), strict=True):
        held = sum(weight.nbytes for weight in part.state_dict().values())
        assert held == pytest.approx(expected[stage], rel=0.001), stage


def test_cost_says_bytes_in_a_precision(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for dtype in ("fp32", "fp16", "int8"):
        assert (
            cli.main(
                ["cost", "--preset", "cogact-base", "--layers", "22", "--dtype", dtype, "--json"]
            )
            == 0
        )
        said[dtype] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["fp16"]["dtype"] == "float16"
    assert 2 * said["fp16"]["weight_bytes"] == said["fp32"]["weight_bytes"]
    assert said["int8"]["stages"]["vision"] == said["fp16"]["stages"]["vision"]
    assert (
        said["int8"]["stages"]["language"]["weight_bytes"]
        < 0.6 * said["fp16"]["stages"]["language"]["weight_bytes"]
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset tabletop --random-weights --layers 4 --dtype int8", "a policy that is streamed"),
        ("--preset tabletop --random-weights --dtype fp8", "expected --dtype as one of"),
        ("--random-weights", "expected --preset"),
        ("--preset tabletop", "got neither"),
        ("tabletop --random-weights", "got both"),
        ("tabletop --layers 4", "only with --random-weights"),
    ],
)
def test_the_verb_refuses(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *words.split(), "--out", str(tmp_path / "x")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["--layers 4", "tabletop-trimmed --random-weights", "--random-weights --against x"]
)
def test_bench_refuses_what_does_not_go_together(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *words.split()]) == 1
    assert "--random-weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_wrong_weight_is_noticed(tmp_path: Path) -> None:
    class Wrong(RandomWeights):
        """Another matrix the first time it is asked for one: as if weights landed in the wrong
        place.
        """

        asked = 0

        def lend(self, name):
            if name == "language.layers.0.self_attn.q_proj.weight":
                Wrong.asked += 1
                name = name.replace("q_proj", "k_proj") if Wrong.asked == 1 else name
            return super().lend(name)

    with pytest.raises(BundleError, match="differs from torch: cognition, float32"):
        export_streamed(Wrong(TINY), wanted(TINY, Plan(), "float32"), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_the_verb_streams_an_official_checkpoint_in_half(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    source = write_official(tmp_path / "source", official_checkpoint())
    (source / "dataset_statistics.json").write_text(json.dumps(placeholder_statistics(TINY)))
    (source / "tokenizer.json").write_text(placeholder_tokenizer(TINY.prompt))
    plan = tmp_path / "plan.json"
    save_plan(scattered(TINY), plan)
    words = [
        "export",
        str(source),
        "--preset",
        "tiny",
        "--plan",
        str(plan),
        "--dtype",
        "fp16",
        "--json",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "bundle")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["ok"] and result["dtype"] == "float16" and result["peak_bytes"] > 0
    assert 0 < result["parity"]["groups"]["cognition, float16"]["worst"] < 0.02
    spec = bundles.load(tmp_path / "bundle").stages["vision"]
    picture = {"image": np.full((1, TINY.image_size, TINY.image_size, 3), 7, np.uint8)}
    usual, frugal = (
        OrtRunner(tmp_path / "bundle" / spec.file, spec, frugal=choice) for choice in (False, True)
    )
    np.testing.assert_allclose(
        usual.run(picture)["visual"], frugal.run(picture)["visual"], rtol=0.01, atol=0.01
    )
    policy = Policy.load(tmp_path / "bundle")
    assert np.isfinite(policy.infer(np.zeros((20, 30, 3), np.uint8), "lift").actions).all()


@pytest.mark.slow
def test_bench_measures_random_weights(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    assert (
        cli.main(
            [
                "bench",
                "--random-weights",
                "--preset",
                "tiny",
                "--mlp-keep",
                "0.5",
                "--rounds",
                "2",
                "--warmup",
                "1",
                "--json",
            ]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["part"] for row in rows] == [*STAGES, "total"]
    assert all(row["p50_ms"] > 0 and row["floor_ms"] > 0 for row in rows)
    assert (tmp_path / "out/random/tiny-M0.5-float16/manifest.json").exists()
