"""What a job would take along: measured by Ray's own rules, and refused where it is an accident."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.ray_cluster.job_upload import check_upload, measure_upload


def write(folder: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)


def test_what_is_measured_is_what_ray_packs(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    project = tmp_path / "project"
    write(project, {"code.py": 10, "pkg/large.py": 3000, "pkg/__pycache__/a.pyc": 5, "runs/a": 7, "more/b": 9, ".venv/c": 8,
                    "left.txt": 4, ".git/HEAD": 2})  # fmt: skip
    (project / ".rayignore").write_text("/runs/\n")
    (project / ".gitignore").write_text("/more/\n")
    upload = measure_upload(project, ["left.txt"])
    create_package(str(project), tmp_path / "a.zip", include_gitignore=True, excludes=[".git", ".venv", "venv", "__pycache__",
                                                                                         "left.txt"])  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        packed = {one.filename: one.file_size for one in package.infolist() if not one.is_dir()}
    assert dict(upload.files) == packed
    assert upload.bytes == sum(packed.values())
    assert upload.files[0] == ("pkg/large.py", 3000)
    assert upload.describe() == "3.0 kB in 4 files, the largest: pkg/large.py 3.0 kB, code.py 0.0 kB, .rayignore 0.0 kB"
    check_upload(upload, None)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("env/pyvenv.cfg", "env/ is a Python environment: add the line /env/ to .rayignore"),
        ("sets/mine/manifest.parquet", "sets/mine/ is a data set: add the line /sets/mine/ to .rayignore"),
        ("out/one/checkpoint_000004/state.json", "out/one/ is a run: add the line /out/one/ to .rayignore"),
    ],
)
def test_data_runs_and_environments_do_not_travel_by_accident(tmp_path: Path, file: str, line: str) -> None:
    write(tmp_path, {"code.py": 10, file: 10})
    with pytest.raises(UserError, match="would be uploaded with what belongs on the cluster's storage") as refused:
        check_upload(measure_upload(tmp_path), None)
    assert line in str(refused.value)
    check_upload(measure_upload(tmp_path), 1.0)  # the user's own limit: no accident
    (tmp_path / ".rayignore").write_text(line.split("the line ")[1].split(" to")[0] + "\n")
    check_upload(measure_upload(tmp_path), None)


def test_what_is_too_large_is_refused_with_the_largest_folders(tmp_path: Path) -> None:
    clips = {f"clips/{name}.mp4": 5_000_000 for name in ("one", "two", "three")}
    write(tmp_path, {"code.py": 10, "b.mp4": 6_000_000, **clips})
    with pytest.raises(UserError, match=r"has 21\.0 MB to upload, more than 20 MB: .*\.rayignore") as refused:
        check_upload(measure_upload(tmp_path), None)
    assert str(refused.value).index("15.0 MB /clips/") < str(refused.value).index("6.0 MB /b.mp4")
    assert "one.mp4" not in str(refused.value)
    with pytest.raises(UserError, match="more than 5 MB"):
        check_upload(measure_upload(tmp_path), 5.0)
    check_upload(measure_upload(tmp_path), 25.0)


def test_this_project_is_far_below_the_limit(repository: Path) -> None:
    upload = measure_upload(repository)
    assert 1e6 < upload.bytes < 8e6
    assert not upload.by_accident
    assert not [name for name, _ in upload.files if name.startswith(("docs/", "tests/", "runs/", "data/", ".venv"))]
