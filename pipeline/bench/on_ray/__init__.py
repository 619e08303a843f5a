"""Benchmarks of the stream on Ray: how fast clips come, and how many blocks its executor can start."""
