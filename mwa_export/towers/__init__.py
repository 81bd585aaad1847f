"""The forward pass, its interpreters, and the exact adapter merge."""
