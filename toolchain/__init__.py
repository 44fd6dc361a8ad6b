"""The command line and everything that needs a host: compressing, fine-tuning, corpora, reports."""

__version__ = "0.1.0"
