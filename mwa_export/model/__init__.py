"""Checkpoints as tensors and configuration, and the PyTorch reference model."""
