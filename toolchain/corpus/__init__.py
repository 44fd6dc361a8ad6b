"""Text in: documents, the train and held-out split, tokens, blocks."""
