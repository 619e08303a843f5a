"""The folder where uploads lie until they are answered."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.serving.requests.limits import Refusal

FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = 30
"""When a client may come again whose upload could not be stored."""
_log = logging.getLogger(__name__)


class Scratch:
    """A folder of a server's own. It is made again if somebody removes it, as programs do that tidy temporary folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls, prefix: str, parent: Path | None) -> Scratch:
        """Makes a new folder in ``parent``, or in the system's temporary folder. Raises UserError if that is not possible."""
        try:
            return cls(Path(tempfile.mkdtemp(prefix=prefix, dir=None if parent is None else parent.expanduser())).resolve())
        except OSError as error:
            where = parent or tempfile.gettempdir()
            raise UserError(f"--scratch {where}: no folder for uploads: {error.strerror}") from None

    def make_upload_folder(self) -> tempfile.TemporaryDirectory[str]:
        """Makes a folder for one upload, so that it lies beside no other one. Raises Refusal if that is not possible."""
        with self.refuse_errors():
            try:
                return tempfile.TemporaryDirectory(dir=self.folder)
            except FileNotFoundError:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                return tempfile.TemporaryDirectory(dir=self.folder)

    @contextlib.contextmanager
    def refuse_errors(self) -> Iterator[None]:
        """Raises Refusal where the system cannot store an upload, and logs why: 507 if the disk is full, else 503."""
        try:
            yield
        except OSError as error:
            _log.error("an upload cannot be stored in %s: %s", self.folder, error.strerror or error)
            if error.errno in FULL:
                text = "the server's disk has no room for the upload: try again later"
                raise Refusal(507, "no_space", text, RETRY_SECONDS) from None
            raise Refusal(503, "no_scratch", "the server cannot store uploads; its log says why", RETRY_SECONDS) from None

    def remove(self) -> None:
        """Removes the folder and what is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
