"""Calibration and INT8: from samples to ranges, from ranges to quantized graphs.

Installed as `mwa_export.calib`. Imports the library; the library never imports it.
"""
