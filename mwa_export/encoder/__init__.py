"""Images and texts to unit vectors, from a bundle or a checkpoint."""
