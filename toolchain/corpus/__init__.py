"""Text in: documents, the train and held-out split, tokens, blocks."""

from toolchain.corpus.load import Corpus, heldout_file, load, pack

__all__ = ["Corpus", "heldout_file", "load", "pack"]
