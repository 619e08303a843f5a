"""Searches for good configuration values: search spaces, Optuna, population-based training."""
