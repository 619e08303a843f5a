"""Where videos and their classes come from, one file for each source; all return a ``Listing``."""

from pipeline.manifest.sources.folder import list_folder
from pipeline.manifest.sources.frames import list_frames
from pipeline.manifest.sources.hmdb51 import list_hmdb51
from pipeline.manifest.sources.kinetics import list_kinetics
from pipeline.manifest.sources.listing import Listing, with_splits
from pipeline.manifest.sources.lists import list_files
from pipeline.manifest.sources.ssv2 import list_ssv2
from pipeline.manifest.sources.ucf101 import list_ucf101

__all__ = [
    "Listing",
    "list_files",
    "list_folder",
    "list_frames",
    "list_hmdb51",
    "list_kinetics",
    "list_ssv2",
    "list_ucf101",
    "with_splits",
]
