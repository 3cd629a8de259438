"""What was hashed is what is loaded: nothing unlisted, no links, no other files, nothing exchanged
in between.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundle import manifest, write_bundle

from trimvla.launch import cli
from trimvla.runtime.backends import chain
from trimvla.runtime.backends.tensorrt import engine_cache as engines
from trimvla.runtime.backends.tensorrt import engine_folders
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.onnx_references import referenced_files
from trimvla.runtime.bundle.plan import parse_plan
from trimvla.runtime.errors import BackendError, BundleError, ConfigError
from trimvla.runtime.inference.policy import Policy


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny", guided=True)


def edit(bundle: Path, change) -> None:
    path = bundle / bundles.MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_an_unlisted_file_is_refused(bundle: Path) -> None:
    (bundle / "vision.onnx.data").write_bytes(b"weights of somebody else")
    with pytest.raises(
        BundleError,
        match=r"tiny.*only files that manifest\.json lists, got 'vision\.onnx\.data' too",
    ):
        Policy.load(bundle)


def test_a_folder_in_a_bundle_is_refused(bundle: Path) -> None:
    (bundle / "more").mkdir()
    with pytest.raises(BundleError, match="got 'more' too"):
        Policy.load(bundle)


def test_a_link_in_a_bundle_is_refused(bundle: Path) -> None:
    (bundle / "vision.onnx").rename(bundle.parent / "elsewhere.onnx")
    (bundle / "vision.onnx").symlink_to(bundle.parent / "elsewhere.onnx")
    with pytest.raises(
        BundleError, match=r"'vision\.onnx' itself, got a symbolic link: copy .* `cp -rL`"
    ):
        Policy.load(bundle)


def test_a_linked_manifest_is_refused(bundle: Path) -> None:
    (bundle / bundles.MANIFEST).rename(bundle.parent / "other.json")
    (bundle / bundles.MANIFEST).symlink_to(bundle.parent / "other.json")
    with pytest.raises(BundleError, match=r"'manifest\.json' itself, got a symbolic link"):
        bundles.load(bundle)


def test_a_pipe_in_a_bundle_is_refused(bundle: Path) -> None:
    (bundle / "vision.onnx").unlink()
    os.mkfifo(bundle / "vision.onnx")
    with pytest.raises(BundleError, match=r"plain file 'vision\.onnx'"):
        bundles.load(bundle)


def test_a_link_to_a_bundle_is_fine(bundle: Path) -> None:
    (bundle.parent / "current").symlink_to(bundle)
    assert Policy.load(bundle.parent / "current").manifest.name == "tiny"


def test_a_pointer_in_a_bundle_is_explained(bundle: Path) -> None:
    (bundle / "vision.onnx").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(BundleError, match=r"Git LFS pointer to 9 bytes.*git lfs pull"):
        bundles.load(bundle)


@pytest.mark.parametrize(
    "exchange",
    [
        lambda bundle, other: shutil.copyfile(other / "action.onnx", bundle / "action.onnx"),
        lambda bundle, other: (other / "action.onnx").replace(bundle / "action.onnx"),
        lambda bundle, other: (bundle.rename(bundle.parent / "away"), other.rename(bundle)),
        lambda bundle, other: (bundle / "new").write_text(""),
    ],
    ids=["written", "renamed", "directory", "added"],
)
def test_what_is_exchanged_after_hashing_is_not_run(
    exchange, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody exchanges a graph in the moment between the check and the load."""
    other = write_bundle(tmp_path / "other", gain=100.0, guided=True)
    expected = Policy.load(bundle)
    real = chain.open_chain

    def between(directory: Path, *args, **options):
        exchange(bundle, other)
        return real(directory, *args, **options)

    monkeypatch.setattr("trimvla.runtime.inference.policy.open_chain", between)
    try:
        policy = Policy.load(bundle)
    except BundleError as error:
        assert "changed while it was loaded" in str(error)
        return
    image = bundles_image()
    assert (
        policy.infer(image, "pick up").actions == expected.infer(image, "pick up").actions
    ).all()


def bundles_image():
    import numpy as np

    return np.zeros((8, 8, 3), np.uint8)


def external(path: Path, location: str, where: str = "initializer") -> None:
    """A graph whose weight lies in another file."""
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "g", [], [])
    if where == "initializer":
        graph.initializer.append(tensor)
    elif where == "constant":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
    else:
        inner = helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], []
        )
        graph.node.append(
            helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        )
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../other/vision.onnx", "secret.bin", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_weights_in_a_file_that_is_not_listed(location: str, where: str, bundle: Path) -> None:
    external(bundle / "vision.onnx", location, where)
    bundles.write(
        bundle,
        msgspec.structs.replace(bundles.parse((bundle / bundles.MANIFEST).read_bytes(), bundle)),
    )
    with pytest.raises(BundleError, match=r"vision\.onnx: stage 'vision' reads its weights from"):
        bundles.load(bundle)


def test_an_operator_that_loads_an_engine(bundle: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("EPContext", [], ["y"], ep_cache_context="/tmp/x")], "g", [], []
    )
    (bundle / "vision.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    bundles.write(bundle, bundles.parse((bundle / bundles.MANIFEST).read_bytes(), bundle))
    with pytest.raises(BundleError, match="an operator EPContext, which loads a file"):
        bundles.load(bundle)


def test_shipped_graphs_share_weights_inside_their_bundle(repo_root: Path) -> None:
    for path in sorted((repo_root / "bundles").glob("*/*.onnx")):
        expected = sorted(
            {
                e.value
                for t in onnx.load(path, load_external_data=False).graph.initializer
                for e in t.external_data
                if e.key == "location"
            }
        )
        assert list(referenced_files(path)) == expected


@pytest.mark.parametrize("raw", [b"\xff" * 40, b"\x0a\xff\x01x", b"\x0b\x0c", b"x"])
def test_bytes_that_are_no_graph(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(raw)
    with pytest.raises(BundleError, match=r"x\.onnx: expected an ONNX graph, got"):
        referenced_files(tmp_path / "x.onnx")


HUGE = 10**18
RANGES = [
    (lambda d: d.update(name="../../root"), "for 'name'"),
    (lambda d: d.update(name="/abs"), "for 'name'"),
    (lambda d: d.update(name="a\nb"), "for 'name'"),
    (lambda d: d.update(name=""), "for 'name'"),
    (lambda d: d["action"].update(horizon=HUGE), r"1 to 1024 for 'action\.horizon'"),
    (lambda d: d["action"].update(horizon=-1), r"'action\.horizon'"),
    (lambda d: d["action"].update(dim=0), r"'action\.dim'"),
    (lambda d: d["action"].update(control_hz=0), r"'action\.control_hz'"),
    (lambda d: d["action"].update(control_hz=float("nan")), r"'action\.control_hz'"),
    (lambda d: d["action"].update(control_hz=1e300), r"'action\.control_hz'"),
    (lambda d: d["images"].update(size=HUGE), r"1 to 2048 for 'images\.size'"),
    (
        lambda d: d["prompt"].update(buckets=list(range(2, 200))),
        r"at most 16 entries for 'prompt\.buckets'",
    ),
    (lambda d: d["prompt"].update(buckets=[HUGE]), r"'prompt\.buckets\[0\]'"),
    (lambda d: d["prompt"].update(buckets=[-4, 12]), r"'prompt\.buckets\[0\]'"),
    (lambda d: d["prompt"].update(bos_id=-1), r"'prompt\.bos_id'"),
    (lambda d: d["prompt"].update(suffix_ids=[2**62]), r"'prompt\.suffix_ids\[0\]'"),
    (lambda d: d["prompt"].update(template="{instruction}" * 1000), r"'prompt\.template'"),
    (lambda d: d["stages"]["language"]["outputs"][0].update(shape=[HUGE]), "axis from 1 to"),
    (
        lambda d: d["stages"]["language"]["outputs"][0].update(shape=[1 << 20, 1 << 20]),
        "elements of",
    ),
    (lambda d: d["stages"]["language"]["outputs"][0].update(shape=[1] * 99), "at most 8 axes"),
    (lambda d: d["stages"]["language"]["outputs"][0].update(dtype="object"), "as dtype of"),
    (lambda d: d["stages"]["vision"].update(file="/etc/passwd"), r"'stages\.vision\.file'"),
    (lambda d: d["stages"]["vision"].update(file="vision.ort"), r"plain name ending in \.onnx"),
    (lambda d: d["files"]["vision.onnx"].update(bytes=-1), r"files\.vision\.onnx\.bytes"),
    (lambda d: d["files"]["vision.onnx"].update(sha256="00"), "64 hexadecimal digits"),
    (lambda d: d["plan"].update(steps=HUGE), "'steps'"),
    (lambda d: d["plan"].update(guidance=float("inf")), "'guidance'"),
    (lambda d: d["plan"].update(layers=[HUGE]), "'layers'"),
    (lambda d: d["plan"].update(channels=["f" * 100_000]), "'channels'"),
    (lambda d: d["plan"].update(tokens={"keep": HUGE}), "'keep'"),
]


@pytest.mark.parametrize(("change", "message"), RANGES, ids=[message for _, message in RANGES])
def test_no_manifest_demands_the_impossible(change, message: str, bundle: Path) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        Policy.load(bundle)


@pytest.mark.parametrize(
    "text",
    [
        '{"steps": 0}',
        '{"steps": -3}',
        '{"channels": ["0x_f"]}',
        '{"channels": [" f"]}',
        '{"guidance": 1e9}',
        '{"recompute": []}',
        '{"tokens": {"keep": 8, "alpha": NaN}}',
        '{"layers": [0, 99999]}',
    ],
)
def test_no_plan_demands_the_impossible(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json: "):
        parse_plan(text.encode(), tmp_path / "plan.json")


def test_engines_lie_under_what_the_graphs_hold(bundle: Path, tmp_path: Path) -> None:
    made = bundles.load(bundle)
    renamed = msgspec.structs.replace(made, name="another")
    assert engines.content_digest(renamed) == engines.content_digest(made)
    other = bundles.load(write_bundle(tmp_path / "other" / "tiny", gain=2.0, guided=True))
    assert engines.content_digest(other) != engines.content_digest(made)
    (folder,) = engine_folders.to_look_in(None, engines.content_digest(made))[-1:]
    assert "tiny" not in str(folder.relative_to(engine_folders.CACHE.expanduser()))


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    key = engines.EngineKey(stage="action", onnx_sha256="00", backend="tensorrt", version="10")
    tmp_path.chmod(0o777)
    with pytest.raises(
        BackendError, match=r"only its user can write, got mode 777: run `chmod go-w"
    ):
        engines.require(tmp_path, key, tmp_path)
    with pytest.raises(BackendError, match="only its user can write"):
        engines.prepare(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / key.record_file).write_text("{}")
    (tmp_path / key.record_file).chmod(0o666)
    with pytest.raises(BackendError, match="got mode 666"):
        engines.find(tmp_path, key)


def test_verify_names_the_bundle_and_not_the_descriptor(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "more.txt").write_text("")
    assert cli.main(["verify", str(bundle)]) == 1
    text = "".join(capsys.readouterr().err.split())
    assert "gotmore" in text.replace("'", "")
    assert "/proc/" not in text


def test_a_tokenizer_beyond_the_vocabulary(bundle: Path) -> None:
    edit(bundle, lambda data: data["prompt"].update(vocabulary=10))
    with pytest.raises(
        BundleError, match=r"tokenizer\.json: expected ids below 10, the"
    ) as refusal:
        Policy.load(bundle)
    assert "/proc/" not in str(refusal.value)


def test_the_manifest_of_the_tests_is_within_all_limits() -> None:
    assert manifest().name == "tiny"
