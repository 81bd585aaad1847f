"""Take trained BEiT-3 and MultiWay-Adapter retrieval models into production."""

__version__ = "0.1.0"
