"""The size, the time of the last change and the SHA-256 of a video, be it one file or a folder of numbered images."""

from __future__ import annotations

import hashlib

from pipeline.files import storage
from pipeline.video import image_sequence


def get_file_info(location: str) -> storage.FileInfo:
    """Returns the size and the time of the last change of a video, without reading it.

    Raises FileNotFoundError, IsADirectoryError where the location is not a file, or OSError.
    """
    return image_sequence.get_file_info(location) if image_sequence.is_pattern(location) else storage.get_file_info(location)


def is_present(location: str) -> bool:
    """Whether a video's file, or an image of its pattern, is there. False, too, where an object store does not answer."""
    try:
        if image_sequence.is_pattern(location):
            return bool(image_sequence.list_images(location))
        return bool(storage.get_file_info(location))
    except OSError:
        return False


def hash_video(location: str) -> str:
    """Computes the SHA-256 of a video as 64 hexadecimal digits. Raises FileNotFoundError or OSError.

    For numbered images it is the SHA-256 of the images' SHA-256 digests, in the order of their numbers.
    """
    if not image_sequence.is_pattern(location):
        return _hash_file(location).hexdigest()
    digest = hashlib.sha256()
    for image in image_sequence.list_images(location):
        digest.update(_hash_file(image).digest())
    return digest.hexdigest()


def _hash_file(location: str) -> hashlib._Hash:
    with storage.open_file(location) as file:
        return hashlib.file_digest(file, "sha256")
