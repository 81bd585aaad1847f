"""Image and text collections: one reader per file format."""
