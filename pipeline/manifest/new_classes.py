"""Classes that are added to a manifest: what they may be called, and the manifest that knows them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from pipeline.errors import suggest
from pipeline.manifest.schema import Manifest, compute_fingerprint


def add_classes(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """Returns the manifest with more classes at the end of its list, so that all others keep their numbers.

    Rows stay as they are: no video gets another class, and the new classes have no test videos. The fingerprint is another
    one, and ``lineage`` says of which manifest it was made. Nothing is written.
    """
    if not names:
        return manifest
    classes = (*manifest.classes, *names)
    step = {"before": manifest.fingerprint, "new_classes": list(names)}
    fingerprint = compute_fingerprint(manifest.table, classes)
    return replace(manifest, classes=classes, fingerprint=fingerprint, lineage=(*manifest.lineage, step))


def find_name_mistakes(manifest: Manifest, names: Sequence[str], answered: Collection[str]) -> list[str]:
    """Lists what is wrong with names of new classes; ``answered`` are the classes that the answers name.

    A name must be new, and not only by its case, spaces or punctuation: whoever types it on the labeling page could not tell
    the two classes apart. Names that are merely similar, such as ``sit`` and ``sit up``, are classes of their own.
    """
    mistakes = []
    known = {_fold(name): name for name in reversed(manifest.classes)}
    for name in names:
        what, alike = f"--new-class {name}", known.get(_fold(name))
        if not name.isprintable() or name != name.strip() or not name:
            mistakes.append(f"--new-class {name!r} is not a name: write one line without spaces around it")
        elif name in manifest.classes:
            mistakes.append(f"{what} is a class already: leave the option out")
        elif name == alike:
            mistakes.append(f"{what} is given twice")
        elif alike is not None:
            mistakes.append(
                f"{what} differs from class {alike} only in case, spaces or punctuation: write {alike} in the answers"
            )
        elif name not in answered:
            mistakes.append(f"{what} is the class of no answer{suggest(name, set(answered) - set(manifest.classes))}")
        known.setdefault(_fold(name), name)
    return mistakes


def _fold(name: str) -> str:
    """Returns a name without what people spell differently; all of it where nothing else is left."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name
