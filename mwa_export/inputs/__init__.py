"""A single image or text: what it can be, validation, decoding, preprocessing, tokenization."""
