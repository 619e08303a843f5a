"""What driver, controller and workers tell each other: to stop, to make room, and why a process ended itself."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.training.watchdog import end_process

RESIZE = -1
"""Where a signal's number would be: other workers are about to take over."""


@ray.remote(num_cpus=0)
class Sign:
    """On the driver's node: the signal that the driver got, and why processes ended themselves."""

    def __init__(self) -> None:
        self.number = 0
        self.saved = False
        self.words: dict[int | None, str] = {}

    def stop(self, number: int) -> None:
        """The driver got this signal."""
        self.number = number

    def asked(self) -> int:
        """What workers look at: a signal's number, ``RESIZE``, or 0."""
        return self.number

    def resize(self) -> None:
        """Workers are to save and leave, for others to take over; a signal goes before."""
        self.number, self.saved = self.number or RESIZE, False

    def left(self) -> None:
        """The first worker has saved."""
        self.saved = True

    def has_left(self) -> bool:
        """Whether it has since ``resize``."""
        return self.saved

    def resized(self) -> None:
        """The others took over."""
        self.number = 0 if self.number == RESIZE else self.number

    def say(self, worker: int | None, words: str) -> None:
        """Why a worker, or the controller (None), is about to end itself."""
        self.words[worker] = words

    def last_words(self) -> dict[int | None, str]:
        """Of those that have ended since this was asked last."""
        words, self.words = self.words, {}
        return words


def here() -> NodeAffinitySchedulingStrategy:
    """For actors that must live as long as this process's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def leave(sign: Any, worker: int | None, words: str) -> None:
    """End this process, and let the driver know why. ``worker`` is None for the controller."""
    with contextlib.suppress(Exception):  # the driver's node does not answer
        ray.get(sign.say.remote(worker, words), timeout=5)
    end_process(words)
