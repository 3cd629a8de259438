"""From a policy and a plan to a bundle: ONNX stages, manifest and the proof that both compute the same."""

import trimvla.runtime  # noqa: F401 - before any library that would report to its maker
