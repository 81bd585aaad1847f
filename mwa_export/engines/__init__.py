"""The jobs behind `trt` and `refit`: build, choose, refit engines."""
