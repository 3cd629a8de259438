"""What a robot needs to run a bundle: numpy, ONNX Runtime, OpenCV and ZeroMQ. Never torch."""
