"""What `cpu.py` measures beside `mwa-export bench`: other tools' quantizers, the GEMM peak."""
