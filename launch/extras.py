"""Which optional install brings which module, and whether a failed import means that one is
missing. Imports none.

Only a module of this table that is not there becomes a hint. A package that is there but broken,
one of its own dependencies that is gone, or a mistake of ours is something else and keeps its
traceback.
"""

from __future__ import annotations

import importlib.util

#   module -> the extras that bring it, the smallest first; none: the base install does
BROUGHT_BY: dict[str, tuple[str, ...]] = {
    "PIL": (),
    "av": ("dataset",),
    "cv2": ("camera", "sim"),
    "cuda": ("tensorrt", "tensorrt-rtx"),
    "gymnasium": ("sim", "train", "simpler"),
    "mani_skill": ("simpler",),
    "matplotlib": ("train",),
    "mcap": ("record", "dataset", "inspect", "ros"),
    "msgspec": (),
    "mujoco": ("sim", "train", "simpler"),
    "numpy": (),
    "onnx": ("export",),
    "onnx_ir": ("export",),
    "onnxruntime": (),
    "onnxscript": ("export",),
    "openvino": ("openvino",),
    "prometheus_client": ("metrics",),
    "ray": ("ray",),
    "pyarrow": ("dataset",),
    "rerun": ("inspect",),
    "rich": (),
    "rosbags": ("ros",),
    "safetensors": ("export", "train"),
    "sapien": ("simpler",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx_bindings": ("tensorrt-rtx",),
    "tokenizers": (),
    "torch": ("export", "train", "simpler"),
    "tyro": (),
    "websockets": ("serve",),
    "zmq": (),
}


def missing_module(error: ImportError) -> str | None:
    """The module of the table that is not installed, if that is all that this error is about."""
    root = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or root not in BROUGHT_BY:
        return None
    return root if importlib.util.find_spec(root) is None else None


def install(module: str, preferred: str = "") -> str:
    """The command that brings a module, by the `preferred` extra where that one does."""
    extras = BROUGHT_BY[module]
    if not extras:
        return "pip install trimvla"
    return f"pip install 'trimvla[{preferred if preferred in extras else extras[0]}]'"
