"""Parity results as HTML, Markdown, JUnit and JSON."""
