"""Tables of jobs.predict are about the videos that they name by id, also where ids and files differ, or say another thing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.files.parquet import METADATA_KEY
from pipeline.labeling.opinions import PredictedScores, read_probabilities
from pipeline.manifest.label_file import read_file_labels
from pipeline.manifest.schema import Manifest, write_manifest
from pipeline.prediction.input_videos import list_inputs
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from tests.manifest.tables import GOOD

CLASSES = ("a", "b")


def make_manifest(path: Path, videos: dict[str, str], starts: tuple[float, ...] | None = None) -> Manifest:
    """Writes a manifest of videos, files by id, whose labels take turns."""
    count = len(videos)
    labels = tuple(CLASSES[index % 2] for index in range(count))
    ends = None if starts is None else tuple(start + 0.5 for start in starts)
    listing = Listing(
        "/videos", "list", tuple(videos.values()), labels, (None,) * count, ("train",) * count, ids=tuple(videos),
        starts=starts, ends=ends,
    )  # fmt: skip
    return write_manifest(build_table(listing, [GOOD] * count), path, CLASSES, "/videos", "list")


def predict(path: Path, names: list[str], manifest: str | None = None) -> Path:
    """Writes a table of predictions; the first video has probability 0 of class b, the second 0.1, and so on."""
    scores = pa.array([[1 - 0.1 * index, 0.1 * index] for index in range(len(names))], pa.list_(pa.float32()))
    columns = {"file": names, "status": ["ok"] * len(names), "primary": scores, "auxiliary": scores, "mean": scores}
    about = {"classes": CLASSES} | ({} if manifest is None else {"manifest": manifest})
    pq.write_table(pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(about).encode()}), path)
    return path


KINETICS = {f"train/{name}_000010_000020": f"train/a class/{name}_000010_000020.mp4" for name in ("-x", "Aq", "zz")}
PARTS = {f"P01_{number}": "P01/P01_01.mp4" for number in range(3)}
CROSSED = {"x.mp4": "y.mp4", "y.mp4": "x.mp4"}


@pytest.mark.parametrize(
    ("videos", "starts"), [(KINETICS, None), (PARTS, (0.0, 0.5, 1.0)), (CROSSED, None)], ids=["kinetics", "parts", "crossed"]
)
def test_what_jobs_predict_writes_of_a_manifest_is_read_back_video_by_video(
    tmp_path: Path, videos: dict[str, str], starts: tuple[float, ...] | None
) -> None:
    manifest = make_manifest(tmp_path / "m.parquet", videos, starts)
    names = [video.name for video in list_inputs([manifest.path])]
    path, rows = predict(tmp_path / "p.parquet", names), np.arange(len(names))
    wanted = [0.1 * names.index(name) for name in manifest.table["id"].to_pylist()]
    found = read_file_labels(str(path), manifest, rows, hard=False).probabilities
    assert found is not None
    np.testing.assert_allclose(found[:, 1], wanted, atol=1e-3)
    found = read_probabilities(PredictedScores(path, manifest), rows, len(rows))[:, :, 1]
    np.testing.assert_allclose(found, np.stack([wanted, wanted], axis=1), atol=1e-6)


def test_a_file_names_its_video_unless_it_has_several(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "m.parquet", KINETICS)
    path = predict(tmp_path / "p.parquet", [f"/videos/{uri}" for uri in KINETICS.values()])
    assert read_file_labels(str(path), manifest, np.arange(3)).count == 3
    manifest = make_manifest(tmp_path / "m.parquet", PARTS, (0.0, 0.5, 1.0))
    path = predict(tmp_path / "p.parquet", ["P01/P01_01.mp4", "P01_1"])
    for read in (
        lambda: read_file_labels(str(path), manifest, np.arange(3)),
        lambda: read_probabilities(PredictedScores(path, manifest), np.arange(3), 3),
    ):
        with pytest.raises(UserError, match=r"P01/P01_01.mp4 is the file of 3 videos; name them by their ids"):
            read()


def test_predictions_of_another_manifests_videos_are_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "m.parquet", KINETICS)
    own = predict(tmp_path / "own.parquet", list(KINETICS), manifest.fingerprint)
    assert read_file_labels(str(own), manifest, np.arange(3)).count == 3
    other = predict(tmp_path / "other.parquet", list(KINETICS), "f" * 16)
    for read in (lambda: read_file_labels(str(other), manifest, np.arange(3)), lambda: PredictedScores(other, manifest)):
        with pytest.raises(UserError, match=r"other.parquet is about the videos of another manifest \(f{16}\)"):
            read()
