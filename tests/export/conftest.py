"""The run and the model folder of all tests in this folder."""

from tests.model_folders import exported, model, trained

__all__ = ["exported", "model", "trained"]
