"""A single image or text: validation, decoding, preprocessing, tokenization."""
