"""The bundle folder and its typed manifest."""
