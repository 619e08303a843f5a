"""Makes confusion matrices of many classes readable: neighbors are classes that are taken for each other, and the pointer names
a cell."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.seeds import Ints


def order_by_confusion(counts_KK: NDArray[np.int64]) -> Ints:
    """Orders the classes so that those that are often taken for each other stand together: the leaves of a hierarchical
    clustering (average linkage) of the shares of confused videos. Returns K indices."""
    shares = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    distances = 1.0 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0.0)
    if len(counts_KK) < 3:
        return np.arange(len(counts_KK))
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import; a help text need not wait
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distances, checks=False), method="average", optimal_ordering=True)
    return np.asarray(leaves_list(tree), dtype=np.int64)


def list_cells(counts_KK: NDArray[np.int64], classes: Sequence[str]) -> dict[str, str]:
    """Lists the classes and all cells with videos ([row, column, count]) as JSON, for the script that names the cell under the
    pointer."""
    cells = [[int(row), int(column), int(counts_KK[row, column])] for row, column in np.argwhere(counts_KK > 0)]
    return {"classes": json.dumps(list(classes)), "cells": json.dumps(cells, separators=(",", ":"))}
