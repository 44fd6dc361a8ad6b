"""Labelled tasks: rows, fine-tuning, metrics."""
