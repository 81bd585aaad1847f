"""Export a checkpoint to a verified bundle."""
