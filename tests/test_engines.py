"""The engine cache, the comparison of precisions and what an engine is tied to: all that needs no
library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from trimvla.export.tensorrt.read_back import compare, written_type
from trimvla.runtime.backends.tensorrt import device
from trimvla.runtime.backends.tensorrt import engine_cache as engines
from trimvla.runtime.backends.tensorrt.engine_cache import EngineKey, EngineRecord
from trimvla.runtime.errors import BackendError

KEY = EngineKey(stage="action", onnx_sha256="00", backend="tensorrt", version="10.3.0")
OTHER = {
    "stage": "vision",
    "onnx_sha256": "01",
    "backend": "tensorrt-rtx",
    "version": "10.4.0",
    "gpu": "Orin",
    "jetpack": "L4T 36.4.3",
    "buckets": (24, 32),
    "workspace_bytes": 1,
}


def record(data: bytes, key: EngineKey = KEY) -> EngineRecord:
    return EngineRecord(
        key=key,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        seconds=1.0,
        precision="float16",
        read_back={"ok": None},
    )


def test_every_field_of_a_key_makes_another_engine() -> None:
    assert OTHER.keys() == {field.name for field in msgspec.structs.fields(EngineKey)}
    changed = [msgspec.structs.replace(KEY, **{name: value}) for name, value in OTHER.items()]
    assert len({key.digest for key in (KEY, *changed)}) == len(OTHER) + 1


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    path = engines.store(tmp_path / "new", b"engine", record(b"engine"))
    assert path.read_bytes() == b"engine"
    assert engines.find(tmp_path / "new", KEY) == record(b"engine")
    assert engines.find(tmp_path / "new", msgspec.structs.replace(KEY, gpu="Orin")) is None


@pytest.mark.parametrize("damage", [b"engin", b"Engine", None])
def test_a_damaged_engine_is_absent(damage: bytes | None, tmp_path: Path) -> None:
    path = engines.store(tmp_path, b"engine", record(b"engine"))
    path.unlink() if damage is None else path.write_bytes(damage)
    assert engines.find(tmp_path, KEY) is None


@pytest.mark.parametrize("text", [b"{", b"{}"])
def test_a_damaged_record_is_absent(text: bytes, tmp_path: Path) -> None:
    engines.store(tmp_path, b"engine", record(b"engine"))
    (tmp_path / KEY.record_file).write_bytes(text)
    assert engines.find(tmp_path, KEY) is None


def test_a_record_under_another_name_is_not_believed(tmp_path: Path) -> None:
    other = msgspec.structs.replace(KEY, gpu="Orin")
    engines.store(tmp_path, b"engine", record(b"engine"))
    (tmp_path / KEY.record_file).rename(tmp_path / other.record_file)
    (tmp_path / KEY.file).rename(tmp_path / other.file)
    assert engines.find(tmp_path, other) is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    engines.write_atomically(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        engines.write_atomically(tmp_path / "file", "text is no bytes")  # pyright: ignore[reportArgumentType]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def layer(**outputs: str) -> dict:
    """One layer as TensorRT's inspector writes it (developer guide, "Engine Inspector")."""
    return {
        "Name": "layer",
        "Outputs": [{"Name": name, "Format/Datatype": text} for name, text in outputs.items()],
    }


def test_an_engine_in_the_asked_precision() -> None:
    report = {"Layers": [layer(a="Row major linear FP16 format", inner="Half"), layer(b="Float")]}
    answer = compare(report, {"a": "float16", "b": "float32", "fused": "float16"})
    assert answer == {"ok": True, "layers": 2, "compared": 2, "types": {"float16": 2, "float32": 1}}


def test_a_silent_fall_back_is_an_error() -> None:
    report = {"Layers": [layer(a="Half"), layer(b="Row major linear FP32")]}
    with pytest.raises(BackendError, match="'b': asked float16, built float32"):
        compare(report, {"a": "float16", "b": "float16"})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "nothing was compared"),
        ([layer(unknown="Half")], "nothing was compared"),
        (["only a name"], "expected detailed layers"),
        ([layer(a="Quarter")], "expected a known data type"),
    ],
)
def test_a_report_that_says_nothing_is_an_error(layers: list, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        compare({"Layers": layers}, {"a": "float16"})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Row major linear BF16", "bfloat16"),
        ("BFloat16", "bfloat16"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Float", "float32"),
        ("FP8", "float8"),
        ("Int8", "int8"),
        ("UInt8", "uint8"),
        ("Int64", "int64"),
        ("Bool", "bool"),
    ],
)
def test_the_inspectors_words(text: str, name: str) -> None:
    assert written_type(text) == name


def test_the_release_of_a_jetson() -> None:
    line = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    assert device.tegra_release(line) == "L4T 36.4.3"
    assert device.tegra_release("another form\n") == "another form"


def test_free_memory_is_what_linux_calls_available() -> None:
    assert (
        device.available("MemTotal: 16 kB\nMemAvailable:    2048 kB\nno number here\n")
        == 2048 << 10
    )


def test_this_machine_is_described() -> None:
    found = device.find_device()
    assert found.gpu
    assert found.jetpack
    assert found.has_gpu == (found.gpu != "none")
