"""Searches for good knobs: spaces, Optuna, population-based training."""
