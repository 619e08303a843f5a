"""The page on which people label suggested videos: each one plays, its probable classes are buttons and keys.

It is one file that needs no server: answers stay in the browser until they are downloaded. Where ``answer_server`` serves it,
each answer is saved as it is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.labeling.suggest import Suggestion, Suggestions
from pipeline.report.parts.html import hash_script, render_page

SCRIPT = (Path(__file__).parent.parent / "report" / "templates" / "labeling.js").read_text(encoding="utf-8")


def render_labeling_page(suggestions: Suggestions, token: str = "", file_id: str = "") -> str:
    """Renders the page. With ``token`` it asks the server that serves it for earlier answers, and sends it each new one.

    ``file_id`` stands for the server's file of answers: what could not be sent is kept for this file alone.
    """
    manifest = suggestions.source.manifest
    data = {
        "run": suggestions.run.name,
        "place": " ".join(["answers of", _identify_run(suggestions.run), manifest.fingerprint, *([file_id] if token else [])]),
        "manifest": manifest.fingerprint,
        "classes": list(manifest.classes),
        "videos": [_describe(video) for video in suggestions.videos],
        "token": token,
    }
    context = {
        "count": len(suggestions.videos), "run": suggestions.run.name, "notes": suggestions.notes, "script": SCRIPT,
        "script_hash": hash_script(SCRIPT), "connect": "'self'" if token else "'none'",
        "data": json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"),  # no </script> in a class name ends the script
    }  # fmt: skip
    return render_page("labeling.html.j2", context)


def _identify_run(folder: Path) -> str:
    """Computes 16 hexadecimal digits that tell a run from others of the same name."""
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        known = [facts.get(key) for key in ("fingerprints", "created", "host")]
    except (OSError, ValueError):
        known = [str(folder.resolve())]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _describe(video: Suggestion) -> dict[str, object]:
    guesses: dict[str, Sequence[object]] = {"primary": video.primary, "auxiliary": video.auxiliary}
    return {
        "id": video.id, "uri": video.uri, "reason": video.reason, "offered": video.offered, "clip": video.clip.image,
        "problem": video.clip.problem, **guesses,
    }  # fmt: skip
