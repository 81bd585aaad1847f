"""The version of mwa-export."""

__version__ = "0.1.0"
