"""Every knob of a run, once: typed, frozen, documented. YAML files and ``key=value`` words only override.

The defaults are the paper's setting as far as it is known; where the paper is silent the docstring says "choice".
``load_config`` reports all mistakes at once, each with the nearest existing name.
"""

from pipeline.config.data import DataSection, RunSection
from pipeline.config.load import all_keys, convert_for, load_config, override, parse_config
from pipeline.config.method import LabelSection, MethodSection, RampSection, StartSection
from pipeline.config.run import Config
from pipeline.config.section import Section
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
    "ARCHS", "AuxiliarySection", "ClipSection", "Config", "DataSection", "EvaluationSection", "LabelSection",
    "MethodSection", "MonitorSection", "Network", "OptimizerSection", "PlainConv3dSection", "PrimarySection", "RampSection",
    "RunSection", "ScaleSection", "Section", "SlowResNetSection", "StartSection", "StrongSection", "TimeSection",
    "TimeSformerSection", "TrackingSection", "TrainSection", "VideoResNetSection", "ViewsSection", "WeakSection",
    "all_keys", "convert_for", "load_config", "override", "parse_config",
]  # fmt: skip
