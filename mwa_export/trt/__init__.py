"""All calls to TensorRT and the CUDA driver."""
