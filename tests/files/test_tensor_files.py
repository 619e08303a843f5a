"""Files of tensors are files like others: the same people may read them, and a full disk is an OSError."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.files.tensor_files import save_tensors


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_whoever_may_read_other_files_may_read_tensors(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        for _ in range(2):  # a file that is there is replaced
            save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors", {"format": "pt"})
        (tmp_path / "text").write_text("text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "text").stat().st_mode
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*a\.safetensors") as error:
            save_tensors({"a": torch.zeros(2**19)}, tmp_path / "a.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "nowhere" / "a.safetensors")
