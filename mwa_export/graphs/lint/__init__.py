"""Rules for quantized and 16-bit graphs, and the linter that checks them."""
