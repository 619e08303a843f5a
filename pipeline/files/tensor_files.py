"""Writes tensors as safetensors files with the rights and the errors that every other file has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

NUMBER = re.compile(r"\(os error (\d+)\)")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that may be read by whoever may read other files that this process writes.

    The library itself makes files that only their owner can read. Raises OSError if the file cannot be written, for which the
    library has an error of its own.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777  # what the process's umask and the folder's default rights leave
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = NUMBER.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    path.chmod(mode)
