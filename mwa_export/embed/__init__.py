"""Batch embedding at scale: plan, pipelines, workers, executors."""
