"""Data sets and sources of images and texts: a reader per file format, and what builds on them."""
