"""Knobs: the losses, their weights in time, and who labels whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import LATER, LTG, MID_RUN, PAPER, SAME_WEIGHTS, SVFORMER, TCL, Pixels, Section, Share, Steps


class LabelSection(Section):
    """Label policy: whose prediction on weak views labels a student's strong views, and how much each label counts."""

    source: Literal["other", "self", "mean", "ema"] | None = None
    """Who labels: the ``other`` student (cross pseudo-labels), the student ``self``, the softmax of both students' ``mean``
    logits, or an ``ema`` of the student's own weights. null is the method's own: other for actnetformer and cmpl, self for
    fixmatch, mvpl and tcl, mean for ltg, ema for svformer."""
    hard: bool = Field(True, json_schema_extra=PAPER)
    """Whether the label is the most probable class (every paper here), or the probabilities themselves."""
    temperature: float = Field(1.0, gt=0, json_schema_extra=MID_RUN)
    """Divides the logits of soft labels before their softmax: below 1 it sharpens them."""
    thresholds: Literal["fixed", "flexmatch", "freematch", "softmatch"] = Field("fixed", json_schema_extra=PAPER)
    """Which labels count: confidence over ``confidence_threshold`` (fixed, FixMatch); over a class's share of it that rises
    with the class's labels so far (flexmatch); over running confidence, per class (freematch); or a weight that falls off
    below the running confidence (softmatch)."""
    distribution_alignment: Literal["off", "uniform", "labeled"] = "off"
    """Before all else: probabilities times target over running mean, normalized (ReMixMatch). The target is ``uniform``
    (SoftMatch's) or the class distribution of the ``labeled`` clips."""
    primary_threshold: Share | None = Field(None, ge=0, le=1, json_schema_extra=MID_RUN)
    """Confidence threshold of labels that the primary gives; null: ``confidence_threshold``. This one and the next are
    refused where they would do nothing: with ``mean`` labels, freematch and softmatch."""
    auxiliary_threshold: Share | None = Field(None, ge=0, le=1, json_schema_extra=MID_RUN)
    """Confidence threshold of labels that the auxiliary gives: a transformer from scratch is confident later."""
    momentum: float = Field(0.99, ge=0, lt=1, json_schema_extra=MID_RUN)
    """Share of their old value that the running means of ``thresholds`` and ``distribution_alignment`` keep in a step.
    FreeMatch and SoftMatch have 0.999 for 2^20 steps; choice for 10^4."""
    ema_decay: float = Field(0.99, ge=0, le=1, json_schema_extra=MID_RUN | SVFORMER)
    """Share of its old weights that an ``ema`` teacher keeps in a step (SVFormer: 0.99). 1: a frozen teacher, which stays what
    the student was at the start, for example by ``network.weights``."""


class TermSection(Section):
    """Weight of one loss over the run: 0 until it starts, then rising linearly over its ramp to ``weight``."""

    weight: float = Field(1.0, ge=0, json_schema_extra=MID_RUN)
    """Factor of the loss in the total; 0 leaves it out."""
    start: Steps = Field(0, ge=0)
    """Steps after ``method.supervised_steps`` at which the loss begins to count."""
    ramp: Steps | None = Field(None, ge=0)
    """Steps over which the weight rises from 0; null: ``method.ramp_steps``."""


class StrongViewsTerm(TermSection):
    """A loss of unlabeled videos that looks at their strong views."""


class WeakViewsTerm(TermSection):
    """A loss of unlabeled videos that compares the students' outputs for weak views, with gradient into them."""


class SupervisedSection(TermSection):
    """Ls, the loss of labeled clips, which every method has. It does not wait for ``method.supervised_steps``."""

    start: Steps = Field(0, ge=0)
    """Step at which the loss begins to count: above 0 only unlabeled videos count until then."""
    ramp: Steps = Field(0, ge=0)
    """Steps over which the weight rises from 0."""
    label_smoothing: Share = Field(0.0, ge=0, lt=1)
    """Share of a label's weight that is spread over all classes (Szegedy et al., 2016). Choice: off."""
    mixup: float = Field(0.0, ge=0)
    """alpha of the Beta(alpha, alpha) by which labeled clips, and their labels, are mixed with the labeled clip before them
    (Zhang et al., 2018; 0.2 is usual); the same share for both students. 0, off, is choice."""


class PseudoLabelSection(StrongViewsTerm):
    """Lu, the loss of pseudo-labels, of all methods but supervised."""

    weight: float = Field(2.0, ge=0, json_schema_extra=MID_RUN | PAPER)
    """gamma, the factor of the loss in the total; 0 leaves it out."""


class ContrastSection(WeakViewsTerm):
    """Lca, the contrast between the students' features of unlabeled videos; for TCL between two speeds of a clip.
    Of actnetformer, ltg and tcl."""

    weight: float = Field(2.0, ge=0, json_schema_extra=MID_RUN | PAPER)
    """beta, the factor of the loss in the total; 0 leaves it out."""
    temperature: float = Field(0.5, gt=0, json_schema_extra=MID_RUN | TCL)
    """tau as a temperature: the paper's summary says 0.8; TCL, whose loss it adopts, 0.5."""
    features: Literal["probabilities", "embeddings", "projection"] = Field("probabilities", json_schema_extra=TCL)
    """What is aligned: softmax vectors (as TCL; fits the paper's parameter count), the pooled features of equal width, or
    their ``projection`` by a small network of each student's (as LTG). Of methods that contrast students: actnetformer, ltg."""
    negatives: Literal["both", "cross"] = Field("both", json_schema_extra=PAPER)
    """Whose features of other videos repel: both students' (the paper's figure), or the other student's only (LTG)."""
    level: Literal["video", "frame"] = "video"
    """Whether a student's feature stands for its clip, or for each of its frames, paired with the other student's frame
    nearest in time; other frames of the same video are then no negatives. Needs ``data.moments=shared`` and nothing in
    ``views.weak.time``. Of methods that contrast students: actnetformer, ltg. The paper leaves it open: choice."""
    projection_width: int = Field(128, ge=2)
    """Outputs of the projection networks. Choice: SimCLR's 128; LTG's configurations have 512."""


class GroupContrastSection(WeakViewsTerm):
    """TCL's contrast between mean predictions of each pseudo-class. Its authors give it 1, and 9 to ``contrast``."""

    weight: float = Field(1.0, ge=0, json_schema_extra=MID_RUN | TCL)
    """Factor of the loss in the total; 0 leaves it out."""


class AlignmentSection(WeakViewsTerm):
    """LTG's 1 - cosine of the primary's to the auxiliary's features."""

    weight: float = Field(1.0, ge=0, json_schema_extra=MID_RUN | LTG)
    """Factor of the loss in the total; 0 leaves it out."""


class FileLabelSection(StrongViewsTerm):
    """Lf, the loss of labels that a file gives to unlabeled videos: another model's predictions, or people's. Of all methods
    but supervised, beside their own losses; with ``pseudo_label.weight=0`` instead of pseudo-labels."""

    weight: float = Field(0.0, ge=0, json_schema_extra=MID_RUN)
    """Factor of the loss in the total; above 0 needs ``file``."""
    file: str | None = Field(None, json_schema_extra=SAME_WEIGHTS)
    """Parquet of class probabilities by video (``pipeline.manifest.label_file``); ``jobs.predict`` writes one. Runs know it
    by its content, so it may be moved."""
    threshold: Share = Field(0.8, ge=0, le=1, json_schema_extra=MID_RUN)
    """Probability of a video's most probable class from which its label counts. Choice: as ``confidence_threshold``. Without
    effect where ``thresholds`` is freematch or softmatch."""
    thresholds: Literal["fixed", "freematch", "softmatch"] = Field("fixed", json_schema_extra=MID_RUN | LATER)
    """Which labels count: confidence from ``threshold`` on (fixed); from the file's mean confidence on, times the class's mean
    probability over the largest class's (freematch); or a weight that falls off below the mean confidence (softmatch). The
    means, which run over steps for students, are those of all unlabeled videos in the file, which never changes. flexmatch is
    refused: it lowers thresholds while a model is unsure of most videos, and a file stays unsure."""
    hard: bool = True
    """Whether the label is the class that the file names or finds most probable, or the probabilities (distillation)."""

    @field_validator("thresholds", mode="before")
    @classmethod
    def _nothing_grows_sure(cls, value: object) -> object:
        if value == "flexmatch":
            raise ValueError(
                "flexmatch raises thresholds as a model grows sure of more videos, but a file never changes: the less sure it "
                "is, the more of its labels would count; take freematch or softmatch, which need no threshold, or fixed"
            )
        return value


class MixSection(StrongViewsTerm):
    """Lmix of SVFormer, the loss of clips that are mixed in tubes of patches."""

    weight: float = Field(2.0, ge=0, json_schema_extra=MID_RUN | SVFORMER)
    """Factor of the loss in the total, by default SVFormer's weight of pseudo-labels; 0 leaves it out."""
    patch: Pixels = Field(16, ge=1, json_schema_extra=SVFORMER)
    """Side of a tube in pixels; the transformer's patch, so that whole tokens are mixed."""
    concentration: float = Field(10.0, gt=0, json_schema_extra=SVFORMER)
    """alpha of the Beta(alpha, alpha) that the mixed share is drawn from (SVFormer: 10)."""
    consistency: Literal["mse", "kl"] = Field("mse", json_schema_extra=SVFORMER)
    """Squared error between probabilities (SVFormer), or Kullback-Leibler divergence, to see whether it matters (choice)."""


class MethodSection(Section):
    """The loss: L = (Ls_Z + Ls_A) + gamma (Lu_Z + Lu_A) + beta Lca for ActNetFormer; other methods have other terms."""

    name: str = Field("actnetformer", json_schema_extra=PAPER)
    """A name of ``pipeline.methods.METHODS``: supervised, fixmatch, cmpl, mvpl, tcl, ltg, svformer or actnetformer. Every
    method trains both students; one that is about a single network (fixmatch, mvpl, tcl, svformer) trains each for itself."""
    confidence_threshold: Share = Field(0.8, ge=0, le=1, json_schema_extra=MID_RUN | PAPER)
    """tau as a threshold: weak-view confidence from which a pseudo-label is kept (paper: 0.8). Without effect where
    ``labels.thresholds`` is freematch or softmatch, which measure confidence against their own running mean."""
    supervised_steps: Steps = Field(0, ge=0)
    """Steps with the supervised loss only, before unlabeled videos count. Choice; FixMatch's video relatives use a warm-up."""
    ramp_steps: Steps = Field(0, ge=0)
    """Steps over which losses of unlabeled videos rise linearly from 0, unless they have a ``ramp`` of their own."""
    supervised: SupervisedSection = SupervisedSection()
    pseudo_label: PseudoLabelSection = PseudoLabelSection()
    contrast: ContrastSection = ContrastSection()
    group_contrast: GroupContrastSection = GroupContrastSection()
    alignment: AlignmentSection = AlignmentSection()
    mix: MixSection = MixSection()
    file_label: FileLabelSection = Field(FileLabelSection(), json_schema_extra=LATER)
    labels: LabelSection = LabelSection()
    modalities: tuple[Literal["rgb", "temporal_gradient", "optical_flow"], ...] = ("rgb", "temporal_gradient")
    """MvPL: what the shared network sees, rgb first, which is what it is tested on. The paper has all three; flow is left
    out because OpenCV on the CPU costs more than the students here (``pip install .[flow]``)."""
    batch_norm: Literal["separate", "joint"] = "separate"
    """Whether labeled, weak and strong clips go through a student as three batches, each with BatchNorm statistics of its
    own, or concatenated as one, which is a tenth faster. Choice: in a prototype one joint batch took the primary from 47 to
    19 % at equal supervised signal; with today's students it costs nothing that can be seen (docs/results_synthetic.md)."""

    @model_validator(mode="after")
    def _file_labels_have_a_file(self) -> MethodSection:
        if (self.file_label.weight > 0) != (self.file_label.file is not None):
            raise ValueError("file_label.weight above 0 and file_label.file go together")
        if self.file_label.file is not None and self.name == "supervised":
            raise ValueError("file_label: supervised uses no unlabeled video; take name=fixmatch with pseudo_label.weight=0")
        return self

    @model_validator(mode="after")
    def _rgb_first(self) -> MethodSection:
        if self.modalities[:1] != ("rgb",) or len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities must begin with rgb, which the network is tested on, and name each once")
        return self


TERMS: dict[str, type[TermSection]] = {
    name: field.annotation
    for name, field in MethodSection.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, TermSection)
}
"""Sections of the losses, by name. A new one is a field of ``MethodSection``, and nothing else."""


def find_short_name(key: str) -> str:
    """Returns the last word of a dotted key, after the name of its loss if it is a knob of one: ``contrast.weight``."""
    *sections, last = key.split(".")
    return f"{sections[1]}.{last}" if sections[:1] == ["method"] and len(sections) == 2 and sections[1] in TERMS else last
