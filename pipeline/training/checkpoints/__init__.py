"""Checkpoints that are whole or absent, and the thread that writes them."""
