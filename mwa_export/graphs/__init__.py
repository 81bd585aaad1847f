"""ONNX graphs as objects and files: build, write, edit, lower precision, lint."""
