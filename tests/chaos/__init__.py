"""What kills runs, to see whether they survive: ``python -m tests.chaos``."""
