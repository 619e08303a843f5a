"""``python -m tests.labeling.million``: seconds and peak memory of suggestions from 1,000,000 saved predictions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.labeling.opinions import TrainingScores, read_opinions, read_probabilities
from pipeline.labeling.strategies import DIVERSE, STRATEGIES, choose_diverse, count_pool, rank_videos
from pipeline.run_folder.contents import make_scores_path

CLASSES, FILES, COUNT = 400, 10, 100


def write_scores(folder: Path, rows: int) -> None:
    """Writes scores of ``rows`` videos, each seen once, in files as training writes them."""
    rng, share = np.random.default_rng(0), rows // FILES
    for number in range(FILES):
        columns = {"step": pa.array(np.full(share, number + 1, np.int32))}
        videos = np.arange(number * share, (number + 1) * share, dtype=np.int32)
        columns |= {"video": pa.array(videos), "label": pa.array(np.full(share, -1, np.int32))}
        for name in ("primary", "auxiliary"):
            scores = rng.random((share, CLASSES), np.float32) ** 8
            scores /= scores.sum(axis=1, keepdims=True)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), CLASSES)
        path = make_scores_path(folder, number + 1, number + 1)
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=2**17, use_dictionary=False)


def read_peak_gigabytes() -> float:
    """Reads the peak memory of this process; ``ru_maxrss`` would have that of the process which started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def main(rows: int = 1_000_000) -> int:
    """Prints a line for each strategy; exit code 1 if they took more than 2 GB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write = (
            f"from pathlib import Path; from tests.labeling.million import write_scores; write_scores(Path({name!r}), {rows})"
        )
        subprocess.run([sys.executable, "-c", write], check=True)  # its memory is not what is measured
        begun, scores, candidates = time.perf_counter(), TrainingScores(folder), np.arange(rows)
        opinions = read_opinions(scores, rows)
        print(f"{rows:,} videos, {CLASSES} classes: read in {time.perf_counter() - begun:.0f} s", flush=True)
        for strategy in STRATEGIES:
            begun = time.perf_counter()
            order, weights = rank_videos(strategy, opinions, candidates, 0)
            pool = count_pool(strategy, COUNT, False)
            probabilities = read_probabilities(scores, order[:pool], rows)
            if strategy in DIVERSE:
                chosen = choose_diverse(
                    probabilities, weights[:pool] if strategy == "mixed" else np.ones(len(probabilities)), COUNT, 0
                )
                assert len(set(chosen)) == COUNT
            gigabytes = read_peak_gigabytes()
            print(f"{strategy}: {time.perf_counter() - begun:.0f} s, {gigabytes:.2f} GB so far", flush=True)
    return int(gigabytes > 2)


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
