"""From a policy and a plan to a bundle: ONNX stages, manifest and proof of parity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimvla.runtime import quiet
from trimvla.runtime.front_door import opened

if TYPE_CHECKING:
    from trimvla.export.bundle import export_policy
    from trimvla.export.verify import verify_bundle

__all__ = [
    "export_policy",
    "verify_bundle",
]

PUBLIC = {
    "export_policy": "bundle:export_policy",
    "verify_bundle": "verify:verify_bundle",
}
"""Name -> module and attribute: what users import from here. Everything else is internal."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = opened(__name__, PUBLIC)

quiet.switch_off()  # before any library is imported that would report to its maker
