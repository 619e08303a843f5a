"""The objects of ``cluster/overlays``, rendered once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cluster.rendered import OVERLAYS, Tree, render


@pytest.fixture(scope="session")
def rendered(repository: Path) -> dict[str, dict[str, Tree]]:
    """The objects of each overlay, by their kind."""
    result = {}
    for name in OVERLAYS:
        objects = list(yaml.load_all(render(repository / "cluster" / "overlays" / name), yaml.CSafeLoader))
        result[name] = {one["kind"]: one for one in objects}
        assert len(result[name]) == len(objects)
    return result
