"""What a robot needs to run a bundle: numpy, ONNX Runtime and ZeroMQ. Never torch."""
