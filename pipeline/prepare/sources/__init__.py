"""Where videos and their classes come from, one file for each source; all return a ``Listing``."""

from pipeline.prepare.sources.folder import list_folder
from pipeline.prepare.sources.frames import list_frames
from pipeline.prepare.sources.hmdb51 import list_hmdb51
from pipeline.prepare.sources.kinetics import list_kinetics
from pipeline.prepare.sources.listing import Listing, with_splits
from pipeline.prepare.sources.ssv2 import list_ssv2
from pipeline.prepare.sources.ucf101 import list_ucf101
from pipeline.prepare.sources.video_list import list_files

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
