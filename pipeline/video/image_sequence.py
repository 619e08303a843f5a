"""Videos that were unpacked into numbered images; FFmpeg's pattern of their names, ``run/v1/img_%05d.jpg``, is their uri."""

from __future__ import annotations

import io
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.files import storage
from pipeline.video.container import UnusableVideoError, summarize_error

NUMBER = re.compile(r"%(?:0(\d+))?d")


def is_pattern(location: str) -> bool:
    """Whether a location is a pattern of numbered images, as ``img_%05d.jpg`` is."""
    return NUMBER.search(location.rpartition("/")[2].replace("%%", "")) is not None


@lru_cache(maxsize=256)
def list_images(location: str) -> tuple[str, ...]:
    """Lists the images that fit a pattern, in the order of their numbers. Raises FileNotFoundError for none, or OSError."""
    folder, _, pattern = location.rpartition("/")
    before, after = (part.replace("%%", "%") for part in NUMBER.split(pattern)[::2])
    name_pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    numbered = sorted((int(match[1]), name) for name in storage.list_names(folder) if (match := name_pattern.fullmatch(name)))
    if not numbered:
        raise FileNotFoundError(f"{location}: no images have such names")
    return tuple(f"{folder}/{name}" for _, name in numbered)


def get_file_info(location: str) -> storage.FileInfo:
    """Returns the size of all images of a pattern together and the time of the latest change of one of them."""
    list_images.cache_clear()
    infos = [storage.get_file_info(image) for image in list_images(location)]
    return storage.FileInfo(sum(info.bytes for info in infos), str(max(int(info.changed) for info in infos)))


def read_image(location: str, width: int | None = None, height: int | None = None) -> NDArray[np.uint8]:
    """Reads an image as RGB [H, W, 3], scaled to ``width`` and ``height`` if they are given.

    Raises UnusableVideoError for a damaged image and OSError for a missing one.
    """
    content = io.BytesIO(storage.read_bytes(location))
    try:
        with Image.open(content) as image:
            if width and height:
                image.draft("RGB", (width, height))  # JPEG: decodes at 1/2, 1/4 or 1/8 where that is still enough
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UnusableVideoError("undecodable", f"{location}: {summarize_error(error)}") from None
    if width and height and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture)
