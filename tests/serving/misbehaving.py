"""Functions for child processes that hang, crash or take memory; importing them costs nothing."""

from __future__ import annotations

import os
import time


def hang(path: str, limits: object) -> None:
    time.sleep(60)


def crash(path: str, limits: object) -> None:
    os.abort()


def take_memory(path: str, limits: object) -> None:
    bytearray(3 * 2**30)


def hang_decoding(*_: object) -> None:
    time.sleep(60)


def tell_environment() -> dict[str, str]:
    return dict(os.environ)
