"""Videos that were unpacked into numbered images; their uri is FFmpeg's pattern of the names, ``run/v1/img_%05d.jpg``."""

from __future__ import annotations

import io
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.files import storage
from pipeline.video.container import UnusableError, first_line

NUMBER = re.compile(r"%(?:0(\d+))?d")


def is_pattern(location: str) -> bool:
    """Whether it names images by a number, as in ``img_%05d.jpg``."""
    return NUMBER.search(location.rpartition("/")[2].replace("%%", "")) is not None


@lru_cache(maxsize=256)
def images(location: str) -> tuple[str, ...]:
    """Locations of the images of a pattern, by number. Raises FileNotFoundError for none, or OSError."""
    folder, _, name = location.rpartition("/")
    before, after = (part.replace("%%", "%") for part in NUMBER.split(name)[::2])
    wanted = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    found = sorted((int(match[1]), name) for name in storage.names(folder) if (match := wanted.fullmatch(name)))
    if not found:
        raise FileNotFoundError(f"{location}: no such images")
    return tuple(f"{folder}/{name}" for _, name in found)


def facts(location: str) -> storage.Facts:
    """Bytes of all images, and the time of the latest."""
    images.cache_clear()
    each = [storage.facts(image) for image in images(location)]
    return storage.Facts(sum(one.bytes for one in each), str(max(int(one.changed) for one in each)))


def read_image(location: str, width: int | None = None, height: int | None = None) -> NDArray[np.uint8]:
    """RGB [H, W, 3], scaled if a size is given. Raises UnusableError for a damaged image, OSError for a missing one."""
    content = io.BytesIO(storage.read_bytes(location))
    try:
        with Image.open(content) as image:
            if width and height:
                image.draft("RGB", (width, height))  # JPEG: decodes at 1/2, 1/4 or 1/8 where that is still enough
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UnusableError("undecodable", f"{location}: {first_line(error)}") from None
    if width and height and picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture)
