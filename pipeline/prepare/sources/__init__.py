"""The sources of videos and their classes, one file for each; every source returns a ``Listing``."""

from pipeline.prepare.sources.folder import list_folder
from pipeline.prepare.sources.frames import list_frames
from pipeline.prepare.sources.hmdb51 import list_hmdb51
from pipeline.prepare.sources.kinetics import list_kinetics
from pipeline.prepare.sources.listing import Listing, draw_missing_splits
from pipeline.prepare.sources.ssv2 import list_ssv2
from pipeline.prepare.sources.ucf101 import list_ucf101
from pipeline.prepare.sources.video_list import list_files

__all__ = [
    "Listing",
    "draw_missing_splits",
    "list_files",
    "list_folder",
    "list_frames",
    "list_hmdb51",
    "list_kinetics",
    "list_ssv2",
    "list_ucf101",
]
