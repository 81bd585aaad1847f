"""The whole pipeline on the bundled demo model."""
