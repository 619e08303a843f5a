"""Names in a request that the server does not know: they are refused, because whoever misspells one should hear of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.errors import find_nearest_name
from pipeline.serving.requests.limits import Refusal

OPTIONS = ("top", "window", "hop")
"""What a request may ask for, as parameters of the address."""


def check_names(found: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises Refusal with status 422 for a name that is not ``known``, or that is given twice.

    ``what`` says in the message what the names are, for example "parameter of the address".
    """
    known = tuple(known)
    for name, count in Counter(iter(found)).items():
        shown = name[:40]
        if name in known:
            if count > 1:
                raise Refusal(422, "options", f"the {what} {shown!r} is given {count} times: give it once")
        elif name in OPTIONS:
            raise Refusal(
                422, "options", f"{shown!r} is not a {what}: give it as a parameter of the address, /predict?{name}=..."
            )
        else:
            nearest = find_nearest_name(shown.lower(), (*known, *OPTIONS))
            remedy = f"did you mean {nearest}?" if nearest else f"known are {', '.join(known) or 'none'}"
            raise Refusal(422, "options", f"unknown {what} {shown!r}; {remedy}")
