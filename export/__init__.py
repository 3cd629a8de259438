"""From a policy and a plan to a bundle: ONNX stages, manifest and the proof that both compute the
same.
"""

from trimvla.runtime import quiet

quiet.switch_off()  # before any library is imported that would report to its maker
