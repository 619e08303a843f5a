"""Copies of a model on a Ray cluster, by Ray Serve, which starts, watches and replaces them, and spreads requests over them."""
