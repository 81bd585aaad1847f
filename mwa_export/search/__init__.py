"""Exact search over the output of `embed`."""
