"""Calibration: activation ranges for quantization. Arrives with the INT8 commands."""
