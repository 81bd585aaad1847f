"""ONNX graphs as objects and files: build, write, edit, convert precision, lint."""
