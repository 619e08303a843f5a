"""Bounds the memory of decoded frames of all requests together."""

from __future__ import annotations

import threading
from collections import deque


class DecodedMemory:
    """A number of bytes that threads reserve and release. Threads that wait are served in the order in which they came, so that
    many small requests do not keep a large one waiting for ever."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    def reserve(self, size: int, seconds: float) -> bool:
        """Reserves ``size`` bytes, at most ``total``, as soon as nobody is before and there is room. Returns False if that
        takes longer than ``seconds``."""
        assert size <= self.total
        me = object()
        with self._changed:
            self._line.append(me)
            try:
                has_room = self._changed.wait_for(
                    lambda: self._line[0] is me and self.used + size <= self.total, max(0.0, seconds)
                )
                self.used += size if has_room else 0
                return has_room
            finally:
                self._line.remove(me)
                self._changed.notify_all()

    def release(self, size: int) -> None:
        """Gives back what was reserved."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()
