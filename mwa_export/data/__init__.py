"""Image and text collections: one reader per file format, sources and test sets on top of them."""
