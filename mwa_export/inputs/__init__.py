"""A single image or text: types, validation, decoding, preprocessing, tokenization."""
