"""The run and the model folders of all tests in this folder."""

from tests.model_folders import exported, model, programs, trained

__all__ = ["exported", "model", "programs", "trained"]
