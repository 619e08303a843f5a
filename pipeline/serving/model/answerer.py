"""What the web server asks of whoever predicts: this process (``in_process``), or replicas on a cluster (``on_ray``)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pipeline.serving.model.answers import Answer, ModelFacts, RequestOptions


class Answerer(Protocol):
    """Predicts uploaded files."""

    facts: ModelFacts
    labels: tuple[str, ...]
    """The class names."""

    async def answer(self, path: Path, options: RequestOptions) -> Answer:
        """Predicts a file, which must exist until this returns. Raises Refusal."""
        ...

    async def is_ready(self) -> bool:
        """Whether a request would be answered now."""
        ...
