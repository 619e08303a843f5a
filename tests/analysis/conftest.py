"""A trained run and the model exported from it, which tests of several rooms share."""

from tests.model_folders import exported, model, trained

__all__ = ["exported", "model", "trained"]
