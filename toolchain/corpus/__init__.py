"""Text in: documents, the train and held-out split, tokens, blocks."""

from toolchain.corpus.load import Corpus, calibration_file, heldout_file, load, pack, sample

__all__ = ["Corpus", "calibration_file", "heldout_file", "load", "pack", "sample"]
