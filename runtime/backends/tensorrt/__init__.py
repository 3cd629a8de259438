"""TensorRT and TensorRT for RTX: engines on one device."""
