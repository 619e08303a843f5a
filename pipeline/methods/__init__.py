"""Methods: from the views of a step to the loss and the monitored quantities, one short file per method."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from pipeline.clips.modalities import check_modalities
from pipeline.config import STUDENTS, Config, MethodSection, PlainConv3dSection
from pipeline.errors import UserError, suggest
from pipeline.manifest.label_file import FileLabels
from pipeline.methods.actnetformer import ActNetFormer
from pipeline.methods.cmpl import CMPL
from pipeline.methods.fixmatch import FixMatch
from pipeline.methods.ltg import LTG
from pipeline.methods.mvpl import MvPL
from pipeline.methods.parts.inputs import LossWeights, Setup, UnlabeledViews, Views, compute_term_weights
from pipeline.methods.parts.make_views import make_views, make_views_of_parts
from pipeline.methods.parts.method import Method
from pipeline.methods.supervised import Supervised
from pipeline.methods.svformer import SVFormer
from pipeline.methods.tcl import TCL
from pipeline.students import Student, build_student, load_weights

__all__ = [
    "METHODS",
    "LossWeights",
    "Method",
    "Setup",
    "UnlabeledViews",
    "Views",
    "build_method",
    "build_students",
    "compute_loss_weights",
    "find_first_unlabeled_step",
    "make_views",
    "make_views_of_parts",
]  # fmt: skip

METHODS: dict[str, Callable[[nn.ModuleDict, Setup], Method]] = {
    "supervised": Supervised,
    "fixmatch": FixMatch,
    "cmpl": CMPL,
    "mvpl": MvPL,
    "tcl": TCL,
    "ltg": LTG,
    "svformer": SVFormer,
    "actnetformer": ActNetFormer,
}
"""The methods by ``method.name``."""


def build_students(config: Config, num_classes: int) -> nn.ModuleDict:
    """Builds both students with random weights from torch's seed, ``primary`` first."""
    sections = {name: getattr(config, name) for name in STUDENTS}
    return nn.ModuleDict({name: build_student(part.network, part.clip, num_classes) for name, part in sections.items()})


def build_method(
    config: Config,
    num_classes: int,
    num_videos: int = 0,
    num_unlabeled: int = 0,
    notes: list[str] | None = None,
    file_labels: FileLabels | None = None,
) -> Method:
    """Builds the method with its new students in ``students["primary"]`` and ``["auxiliary"]``, from torch's seed.

    ``num_videos`` (manifest rows up to the last that is trained) and ``num_unlabeled`` determine the size of what label
    policies store. The method is the module that DDP wraps and a checkpoint stores: students, their projection heads if any,
    label statistics and EMA teachers. To ``notes`` is added what the user should know of the weights. Raises UserError for an
    unknown name, weights that cannot be loaded, and features that cannot be compared.
    """
    kind = _find_method(config.method.name)
    seen = [getattr(config, name).clip.modality for name in STUDENTS]
    check_modalities([*seen, *(config.method.modalities if kind is MvPL else ())])
    students = build_students(config, num_classes)
    for name in STUDENTS:
        network = getattr(config, name).network
        if network.weights:
            field = f"{name}.network.weights"
            pixels = None if isinstance(network, PlainConv3dSection) else network.weights_pixels
            loaded = load_weights(cast(Student, students[name]), network.weights, field, pixels)
            if notes is not None and not loaded.head:
                theirs = "no classifier" if loaded.their_classes is None else f"a classifier of {loaded.their_classes} classes"
                notes.append(f"{field} has {theirs}, the data {num_classes} classes: the classifier starts at random")
    method = kind(students, Setup(config, num_classes, num_videos, num_unlabeled))
    if config.method.file_label.weight > 0:
        method.take_file_labels(file_labels, num_classes, num_videos)
    return method


def compute_loss_weights(section: MethodSection, step: int) -> LossWeights:
    """Computes the weights of the method's own loss terms at a step; all others are 0."""
    return compute_term_weights(section, step, _list_terms(section.name))


def find_first_unlabeled_step(config: Config) -> int:
    """Finds the first step whose losses use unlabeled videos; ``train.steps`` if there is none."""
    section, terms = config.method, _list_terms(config.method.name)
    starts: list[int] = [getattr(section, term).start for term in terms if getattr(section, term).weight > 0]
    return min([config.train.steps, *(section.supervised_steps + start for start in starts)])


def _list_terms(name: str) -> tuple[str, ...]:
    """The losses of unlabeled videos that a method has: its own, and that of labels from a file."""
    own: tuple[str, ...] = getattr(_find_method(name), "TERMS", ())
    return (*own, "file_label") if own else ()


def _find_method(name: str) -> Callable[[nn.ModuleDict, Setup], Method]:
    if name not in METHODS:
        raise UserError(f"method.name: there is no {name}, only {', '.join(METHODS)}{suggest(name, METHODS)}")
    return METHODS[name]
