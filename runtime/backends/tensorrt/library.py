"""TensorRT and TensorRT for RTX through the Python API that they share: one module, chosen at run
time, one Logger.

Both from TensorRT 10.3 (JetPack 6) to 11.4, where precision flags are gone and every network is
strongly typed. What is not in all of these versions is asked for, never assumed. Knows neither
stages nor engines.
"""

from __future__ import annotations

import importlib
import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from trimvla.runtime.errors import BackendError

TrtBackend = Literal["tensorrt", "tensorrt-rtx"]

# backend -> modules, the first that imports is taken
MODULES: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
INSTALL = {
    "tensorrt": (
        "on Jetson it is part of JetPack (apt-get install python3-libnvinfer, and make the virtual"
        " environment with --system-site-packages), elsewhere pip install 'trimvla[tensorrt]'"
    ),
    "tensorrt-rtx": "pip install 'trimvla[tensorrt-rtx]'",
}
NAMES = {  # the library's DataType -> ours
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8",
    "FP4": "float4",
    "INT4": "int4",
}
KEPT_MESSAGES = 20
NOISE = "has Int64 binding"  # a hint about every int64 input; a stage's spec is int64 already

log = logging.getLogger("trimvla.tensorrt")


@dataclass(frozen=True)
class TrtLibrary:
    """The module, its version and this process's only Logger; `complaints` are its newest errors,
    oldest first.
    """

    backend: str
    module: Any
    version: str
    logger: Any
    complaints: deque[str]

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.backend} {self.version}"

    def complaint(self) -> str:
        """The newest errors on one line; they are taken, so that the next failure does not repeat
        them.
        """
        text = "; ".join(dict.fromkeys(self.complaints)) or "the library gave no reason"
        self.complaints.clear()
        return text


@cache
def load_trt(backend: str) -> TrtLibrary:
    """The library, imported once: TensorRT allows one Logger per process.

    Raises:
        BackendError: an unknown backend, or the library is not installed; names what to install.
    """
    if backend not in MODULES:
        raise BackendError(f"expected one of {sorted(MODULES)}, got {backend!r} for 'backend'")
    module = _import_first(backend)
    complaints: deque[str] = deque(maxlen=KEPT_MESSAGES)
    return TrtLibrary(
        backend, module, str(module.__version__), _make_logger(module, complaints), complaints
    )


def creation_flags(trt: Any) -> int:  # noqa: ANN401 - a module without types
    """Strongly typed where that is a choice; where the flag is gone, it is the only mode."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def dtype_name(dtype: Any) -> str:  # noqa: ANN401 - the library's enumeration
    """The library's DataType by our name."""
    name = str(dtype.name)
    return NAMES.get(name, name.lower())


def _import_first(backend: str) -> Any:  # noqa: ANN401 - a module without types
    reasons = []
    for name in MODULES[backend]:
        try:
            return importlib.import_module(name)
        except ImportError as error:  # also a library that the module links against
            reasons.append(str(error))
    raise BackendError(f"backend '{backend}' is not installed ({reasons[-1]}): {INSTALL[backend]}")


def _make_logger(trt: Any, complaints: deque[str]) -> Any:  # noqa: ANN401 - its base class exists only now
    """Errors are kept for the exception that follows; the rest goes to Python's logging."""
    levels = {
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Forward(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - the library's enumeration
            if severity in levels:
                log.log(logging.DEBUG if NOISE in message else levels[severity], message)
            else:
                complaints.append(" ".join(message.split()))

    return Forward()
