"""What a check of the installation found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    """What was checked, in one or two words."""
    state: State
    """``note``: it works, with a limit that the user should know. ``problem``: some command will fail or be much slower."""
    found: str
    """What was found."""
    remedy: str = ""
    """What to do; "" for ``ok``."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON's types."""
        return asdict(self)


def format_findings(findings: Sequence[Finding]) -> list[str]:
    """Formats findings, a line each and a second one for the remedy."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:8} {finding.subject:{width}}  {finding.found}")
        lines += [f"{'':8} {'':{width}}  -> {finding.remedy}"] if finding.remedy else []
    return lines


def count_problems(findings: Iterable[Finding]) -> int:
    """Counts the findings that are problems."""
    return sum(finding.state == "problem" for finding in findings)
