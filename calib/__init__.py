"""Calibration and INT8 quantization: from samples to ranges, and from ranges to quantized graphs.

Installed as `mwa_export.calib`. Imports the library; the library never imports it.
"""
