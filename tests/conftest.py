"""What all tests share. The environment is set before Ray is imported, because Ray reads it at import."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# a local cluster needs no token and must not write one to the home folder; tests/ray_heads.py sets its own
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray runs its processes at a low priority (niceness 15), and beside the other tests they would wait for minutes
os.environ.setdefault("RAY_worker_niceness", "0")
# a call of Ray's does not start a cluster by itself, whose processes would be there until the end
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# the tensors of tests are small: on a busy machine threads cost more than they bring
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.videos import bring_back_processes, leave_out_processes

pytest_plugins = ["tests.browser", "tests.ray_heads", "tests.run_folders", "tests.model_folders"]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell has what it starts with "&" ignore Ctrl+C, and so would the commands that tests start and interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("house", deadline=None, derandomize=True)  # the machine's load is no property of the code
settings.load_profile("house")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Has what is imported for the tests, a million objects that stay, not searched for garbage: neither now nor later.

    What single tests import beside is searched seldom: every 50,000 new objects instead of every 700.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shares out tests among processes (``make test``), so that what several tests need is prepared once.

    Those with Ray share a process and its cluster. Those of the model that is exported share a process, too; the others share
    it with their file, or with the folder around it that has a conftest.py. What takes longest comes first, so that at the end
    no process waits for another's: Ray's, then what several files share, then single files.
    """
    here = Path(__file__).parent
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"), append=False)
        elif not item.get_closest_marker("xdist_group"):
            is_exported = not {"exported", "programs"}.isdisjoint(getattr(item, "fixturenames", ()))
            shared = [folder for folder in item.path.parents if here in folder.parents and (folder / "conftest.py").is_file()]
            file = item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group("exported" if is_exported else shared[0].name if shared else file))
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, _get_group(item) == item.nodeid.partition("::")[0]))


def _get_group(item: pytest.Item) -> object:
    """Returns the name of the group that pytest-xdist runs in one process; the marker closest to the test counts."""
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return marker.args[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the cluster of ``ray_cluster`` after the last test with Ray, since an idle one takes CPU, too."""
    if item.get_closest_marker("ray") and not (nextitem and nextitem.get_closest_marker("ray")):
        import ray

        ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def in_this_process() -> Iterator[None]:
    """Videos are rendered, probed, copied and shown in this process, because most tests ask for which of them, not how."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_processes(patch)
        yield


@pytest.fixture
def in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are so in child processes, as they are for users."""
    bring_back_processes(monkeypatch)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the project."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Folder with real videos beside the repository; tests that need it skip where it is absent."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of 2 CPUs for the whole session: starting one takes 5 s, and two at once confuse Ray's state API."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=500_000_000,
        # what decoded for one test decodes for the next: Ray ends idle processes after 1 s, and a new one imports for 2
        _system_config={"idle_worker_killing_time_threshold_ms": 60_000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a rendered data set as a user would make it: 32 videos, 4 motions, 4 labels per class, and ``tiny.yaml``."""
    from jobs import prepare

    folder = tmp_path_factory.mktemp("tiny")
    assert prepare.main(["synthetic", str(folder), "--videos", "32", "--classes", "4", "--seed", "0"]) == 0
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder), encoding="utf-8")
    return folder


TINY = """
run: {{storage_path: {folder}/runs, name: tiny}}
data:
  {{manifest: {folder}/manifest.parquet, labeled_per_step: 2, unlabeled_per_labeled: 2, decode_size: 40, clips_per_block: 12}}
primary: {{network: {{depth: 10, width: 8, norm: group}}, clip: {{frames: 4, fps: 8, size: 32}}}}
auxiliary: {{network: {{width: 32, depth: 2, heads: 2, patch: 8, tubelet: 2}}, clip: {{frames: 4, fps: 16, size: 32}}}}
train: {{steps: 12, warmup_steps: 2, log_every: 2, checkpoint_every: 4}}
evaluation: {{clips: 2, crops: 1}}
scale: {{workers: 0, torch_threads: 1}}
"""
