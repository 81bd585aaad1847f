"""Recall parity: measure what a conversion costs, judge and report it."""
