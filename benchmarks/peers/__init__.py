"""Peers that `cpu.py` adds to `mwa-export bench`: other tools' quantizers and the GEMM peak."""
