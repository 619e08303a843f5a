"""Certificates of a cluster that speaks TLS, made as operators make them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "make_certificates"
Environment = dict[str, str]


def make_certificates(folder: Path, address: str = "127.0.0.1") -> Environment:
    """Makes an authority and a machine's certificate; returns the variables that name them."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    subprocess.run([str(SCRIPT), str(folder), address], check=True, capture_output=True, timeout=60)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / f"{address}.crt"),
        "RAY_TLS_SERVER_KEY": str(folder / f"{address}.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
    }
