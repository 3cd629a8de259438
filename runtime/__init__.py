"""What a robot needs to run a bundle: numpy, ONNX Runtime and ZeroMQ. Never torch."""

from trimvla.runtime.quiet import switch_off

switch_off()
