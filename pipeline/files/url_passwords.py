"""Passwords in URLs, as in ``postgresql://USER:PASSWORD@HOST/``: hidden in what is shown or written, and found in settings."""

from __future__ import annotations

import re

PASSWORD = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@'\"]*):(?P<password>[^\s/@'\"]+)@")
HIDDEN = "***"


def hide_passwords(text: str) -> str:
    """Returns the text with ``***`` instead of each password in a URL."""
    return PASSWORD.sub(rf"\g<before>:{HIDDEN}@", text)


def has_password(text: str) -> bool:
    """Returns whether the text holds a URL with a password."""
    return any(found["password"] != HIDDEN for found in PASSWORD.finditer(text))
