"""Methods: from the views of a step to the loss and what is watched beside it, one screen per method."""

from __future__ import annotations

from torch import nn

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods.actnetformer import ActNetFormer
from pipeline.methods.inputs import STUDENTS, LossWeights, Views, loss_weights, make_views
from pipeline.methods.supervised import Supervised
from pipeline.students import build_student

__all__ = ["STUDENTS", "LossWeights", "Views", "build_method", "loss_weights", "make_views"]


def build_method(config: Config, num_classes: int) -> Supervised | ActNetFormer:
    """The method with its new students in ``students["primary"]`` and ``["auxiliary"]``, from torch's seed.

    ``forward(views, weights)`` returns a dict: ``loss`` with gradient, all else detached scalars. It holds no parameters
    but the students', so it is what DDP wraps and what a checkpoint stores. Raises UserError when the contrast's features
    have two widths.
    """
    sections = {name: getattr(config, name) for name in STUDENTS}
    built = {name: build_student(part.network, part.clip, num_classes) for name, part in sections.items()}
    students = nn.ModuleDict(built)
    if config.method.name == "supervised":
        return Supervised(students)
    widths = {name: student.num_features for name, student in built.items()}
    if config.method.contrast_features == "embeddings" and len(set(widths.values())) > 1:
        raise UserError(
            f"method.contrast_features=embeddings needs students of one feature width, but they have {widths}; "
            "use probabilities, or change the networks' widths"
        )
    return ActNetFormer(students, config.method)
