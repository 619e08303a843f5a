"""Size, time of change and SHA-256 of a video, be it one file or a folder of numbered images."""

from __future__ import annotations

import hashlib

from pipeline.files import storage
from pipeline.video import image_sequence


def facts(location: str) -> storage.Facts:
    """Bytes, and the time of the last change. Raises FileNotFoundError, IsADirectoryError for what is no file, or OSError."""
    return image_sequence.facts(location) if image_sequence.is_pattern(location) else storage.facts(location)


def is_there(location: str) -> bool:
    """Whether there is such a file, or an image of such a name; not where a store does not answer."""
    try:
        return bool(image_sequence.images(location)) if image_sequence.is_pattern(location) else bool(storage.facts(location))
    except OSError:
        return False


def sha256(location: str) -> str:
    """64 hexadecimal digits; of images: over the SHA-256 of each in order of number. Raises FileNotFoundError or OSError."""
    if not image_sequence.is_pattern(location):
        return _of_file(location).hexdigest()
    together = hashlib.sha256()
    for image in image_sequence.images(location):
        together.update(_of_file(image).digest())
    return together.hexdigest()


def _of_file(location: str) -> hashlib._Hash:
    with storage.open_file(location) as file:
        return hashlib.file_digest(file, "sha256")
