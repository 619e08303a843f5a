"""Every knob of a run, once: typed, frozen, documented. YAML files and ``key=value`` words only override.

The defaults are the paper's setting as far as it is known; where the paper is silent the docstring says "choice".
``load_config`` reports all mistakes at once, each with the nearest existing name.
"""

from pipeline.config.data import DataSection, RunSection
from pipeline.config.load import convert_to_type_of, explain_unknown, list_keys, load_config, override, parse_config
from pipeline.config.method import (
    TERMS,
    ContrastSection,
    FileLabelSection,
    LabelSection,
    MethodSection,
    MixSection,
    StrongViewsTerm,
    SupervisedSection,
    TermSection,
    WeakViewsTerm,
    find_short_name,
)
from pipeline.config.renamed import translate_old_keys, translate_old_names
from pipeline.config.run import STUDENTS, Config
from pipeline.config.section import Section, list_marked_keys
from pipeline.config.students import (
    ARCHS,
    AuxiliarySection,
    ClipSection,
    Network,
    OptimizerSection,
    PlainConv3dSection,
    PrimarySection,
    SlowResNetSection,
    TimeSformerSection,
    VideoResNetSection,
)
from pipeline.config.training import EvaluationSection, MonitorSection, ScaleSection, TrackingSection, TrainSection
from pipeline.config.views import StrongSection, TimeSection, ViewsSection, WeakSection

__all__ = [
    "ARCHS",
    "STUDENTS",
    "TERMS",
    "AuxiliarySection",
    "ClipSection",
    "Config",
    "ContrastSection",
    "DataSection",
    "EvaluationSection",
    "FileLabelSection",
    "LabelSection",
    "MethodSection",
    "MixSection",
    "MonitorSection",
    "Network",
    "OptimizerSection",
    "PlainConv3dSection",
    "PrimarySection",
    "RunSection",
    "ScaleSection",
    "Section",
    "SlowResNetSection",
    "StrongSection",
    "StrongViewsTerm",
    "SupervisedSection",
    "TermSection",
    "TimeSection",
    "TimeSformerSection",
    "TrackingSection",
    "TrainSection",
    "VideoResNetSection",
    "ViewsSection",
    "WeakSection",
    "WeakViewsTerm",
    "convert_to_type_of",
    "explain_unknown",
    "find_short_name",
    "list_keys",
    "list_marked_keys",
    "load_config",
    "override",
    "parse_config",
    "translate_old_keys",
    "translate_old_names",
]  # fmt: skip
