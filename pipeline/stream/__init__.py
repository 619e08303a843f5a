"""Decoded clips as batches for the training step: by threads of this process, or by Ray Data."""
