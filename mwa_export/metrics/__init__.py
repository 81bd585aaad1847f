"""Ranking, recall, agreement, significance and the recall budget, from arrays."""
