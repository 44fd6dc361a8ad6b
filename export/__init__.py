"""Checkpoint to artifact: the inference graph, quantization and parity."""
