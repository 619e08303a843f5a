"""A model of real clips as a user makes it: videos and a list in, a model folder out, and nothing else is left.

    python -m tests.real_model ../shared/data/utd_mhad_depth OUT --steps 150

trains the students of jobs/configs/actions.yaml on people in depth video (three minutes on two cores), evaluates them, exports
them with ONNX and int8 files to ``OUT``, evaluates the model folder, and deletes run, manifest, labels and list.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from jobs import evaluate, export, prepare, train
from jobs.command import DONE, run

CONFIG = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "actions.yaml"


def make_real_model(videos: Path, out: Path, steps: int, *words: str) -> None:
    """Makes the model folder ``out`` of the clips that ``videos/clips.csv`` lists; ``words`` are more of training's."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copy(videos / "clips.csv", work)
        data = ["list", str(work / "clips.csv"), str(work / "data"), "--root", str(videos), "--labeled", "2/class"]
        where = [f"run.storage_path={work}/runs", f"data.manifest={work}/data/manifest.parquet", f"train.steps={steps}"]
        assert run(prepare.main, data) == DONE
        assert run(train.main, ["--config", str(CONFIG), *where, *words]) == DONE
        assert run(evaluate.main, [f"{work}/runs/actions", "evaluation.clips=1"]) == DONE
        assert run(export.main, [f"{work}/runs/actions", str(out), "evaluation.clips=1", "--onnx-int8"]) == DONE
        assert run(evaluate.main, [str(out), "--manifest", f"{work}/data/manifest.parquet"]) == DONE


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.real_model", description=__doc__)
    parser.add_argument("videos", type=Path, help="a folder with clips.csv and the clips that it lists")
    parser.add_argument("out", type=Path, help="the model folder to make")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    make_real_model(options.videos.resolve(), options.out.resolve(), options.steps)


if __name__ == "__main__":
    main()
