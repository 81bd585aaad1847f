"""Rules that quantized and typed graphs must follow, and the checker."""
