"""Run the full pipeline on the bundled demo model."""
