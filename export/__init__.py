"""From a policy and a plan to a bundle: ONNX stages, manifest and the proof that both compute the same."""
