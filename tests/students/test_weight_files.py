"""Files of weights are read as data: what is planted in them is not executed, whatever the file is called."""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import ClipSection, SlowResNetSection
from pipeline.errors import UserError
from pipeline.students import build_student, load_weights
from pipeline.students.weight_files import read_weight_file

SUFFIXES = (".pth", ".pyth", ".pt", ".pkl", ".pickle", ".safetensors")


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (str(self.path),)  # type: ignore[return-value]


class EvilArray(np.ndarray):
    """An array of a class of its own, whose code runs when one is made."""

    ran: Path

    def __array_finalize__(self, _: Any) -> None:
        self.ran.touch()


def make_evil_array() -> bytes:
    made = pickle.dumps(np.zeros(2), protocol=2)
    return made.replace(b"cnumpy\nndarray\n", f"c{__name__}\nEvilArray\n".encode())


def save_as_torch_before_1_6(tree: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def save_as_torch(tree: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_planted_code_is_not_run(suffix: str, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    EvilArray.ran = ran
    planted = {"state_dict": {"a": torch.zeros(1), "b": Evil(ran)}, "blobs": {"conv1_w": Evil(ran)}}
    numbers = pickle.dumps({"blobs": {"conv1_w": np.zeros(2)}, "cfg": Evil(ran)}, protocol=2)
    lines = [pickle.dumps(planted, protocol) for protocol in range(6)]
    for content in (*lines, numbers, make_evil_array(), save_as_torch(planted), save_as_torch_before_1_6(planted)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_weight_file(path)
        assert not ran.exists()
    for planted_alone in (pickle.dumps(Evil(ran)), make_evil_array()):
        pickle.loads(planted_alone)
        assert ran.exists(), "the test would prove nothing"
        ran.unlink()


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "_codecs.lookup", "torch.load"]
)
def test_only_what_arrays_need_is_looked_up(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    (tmp_path / "w.pkl").write_bytes(f"c{module}\n{attribute}\n(S'true'\ntR.".encode())
    with pytest.raises(UserError, match=f"{name} is not part of an array; if you trust the file, write its tensors alone"):
        read_weight_file(tmp_path / "w.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asfortranarray(np.eye(3)), "c": np.float64(0.5)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"blobs": OrderedDict(arrays), "more": ["text", 1, (2.0, None)]}, protocol))
    found = read_weight_file(tmp_path / "w.pkl")
    assert list(found) == ["a", "b", "c"]
    for name, value in arrays.items():
        assert torch.equal(found[name], torch.as_tensor(np.array(value))), name


def test_arrays_of_python_2_are_read(tmp_path: Path) -> None:
    """There, bytes and texts are one: NumPy pickled the bytes of an array as a text. 1.5 and -2 as float32."""
    old = (
        b"(dp0\nS'blobs'\n(dp1\nS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\xc0?\\x00\\x00\\x00\\xc0'\ntbss."
    )
    (tmp_path / "w.pkl").write_bytes(old)
    assert read_weight_file(tmp_path / "w.pkl")["a"].tolist() == [1.5, -2.0]


def test_a_pkl_file_may_be_of_torch(tmp_path: Path) -> None:
    """As those of SlowFast's multigrid models."""
    for content in (save_as_torch({"model_state": {"a": torch.ones(2)}}), save_as_torch_before_1_6({"a": torch.ones(2)})):
        (tmp_path / "w.pkl").write_bytes(content)
        assert torch.equal(read_weight_file(tmp_path / "w.pkl")["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"blobs": {"a": "text"}}, "holds no mapping of names to tensors: a is str"),
        ([1], "holds no mapping of names to tensors"),
        ({}, "holds no mapping of names to tensors"),
        ({"blobs": {"a": np.array([{}], dtype=object)}}, "a is ndarray"),
    ],
)
def test_what_holds_no_numbers_is_refused(tree: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(tree, protocol=2))
    with pytest.raises(UserError, match=message):
        read_weight_file(tmp_path / "w.pkl")


@pytest.mark.filterwarnings("ignore")  # torch says of some that they are deprecated
@pytest.mark.parametrize(
    ("convert", "kind"),
    [
        (torch.Tensor.to_sparse, "sparse Tensor"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "quantized Tensor"),
        (lambda value: value.to("meta"), "empty (meta) Tensor"),
    ],
)
def test_tensors_whose_numbers_cannot_be_copied_are_refused(convert: Any, kind: str, tmp_path: Path) -> None:
    torch.save({"a": convert(torch.ones(2))}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=re.escape(f"a is {kind}")):
        read_weight_file(tmp_path / "w.pth")


def test_no_message_says_how_to_run_the_code_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(save_as_torch({"a": Evil(tmp_path / "ran")}))
    with pytest.raises(UserError, match=r"code in it is not run: .*GLOBAL") as error:
        read_weight_file(tmp_path / "w.pth")
    assert "weights_only" not in str(error.value) and "safe_globals" not in str(error.value)


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"blobs": {"a": np.arange(100.0)}}, protocol=2)
    for length in range(0, len(whole), 7):
        (tmp_path / "w.pkl").write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read"):
            read_weight_file(tmp_path / "w.pkl")


@torch.no_grad()
def test_pixels_of_a_file_are_those_that_its_project_has_or_that_the_user_names(tmp_path: Path) -> None:
    """mmaction2's networks take ImageNet's colors; blue first is the same kernel turned round."""
    section = SlowResNetSection(depth=10, width=4)
    torch.manual_seed(1)
    public = build_student(section, ClipSection(size=32), 5).eval()
    pixels = torch.rand(1, 3, 2, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ours = (pixels - 0.45) / 0.225
    wanted = {"imagenet": (pixels - mean) / std, "slowfast": ours, "slowfast_bgr": ours.flip(1), "half": (pixels - 0.5) / 0.5}
    own = public.state_dict()
    tensors = {name: value for name, value in own.items() if name.partition(".")[0] not in ("stem", "head")}
    tensors |= {f"backbone.conv1.conv.{name[7:]}": value for name, value in own.items() if name.startswith("stem.0.")}
    tensors |= {f"backbone.conv1.bn.{name[7:]}": value for name, value in own.items() if name.startswith("stem.1.")}
    save_file(tensors, tmp_path / "w.safetensors")
    stem: Any = public.stem[:2]  # type: ignore[index]
    for named in (None, *wanted):
        student: Any = build_student(section, ClipSection(size=32), 5).eval()
        load_weights(student, str(tmp_path / "w.safetensors"), "x", named)
        found, expected = student.stem[:2](ours), stem(wanted[named or "imagenet"])
        inner = (..., slice(2, -2), slice(2, -2))  # but for the padding
        assert torch.allclose(found[inner], expected[inner], rtol=1e-4, atol=1e-5), named


def test_pixels_are_for_files_of_other_projects(tmp_path: Path) -> None:
    student: Any = build_student(SlowResNetSection(depth=10, width=4), ClipSection(size=32), 5)
    save_file({f"students.primary.{name}": value for name, value in student.state_dict().items()}, tmp_path / "w.safetensors")
    for where, message in ((tmp_path / "w.safetensors", "another project's keys"), ("timm:resnet50", "for files alone")):
        with pytest.raises(UserError, match=f"weights_pixels=half is .*{message}"):
            load_weights(student, str(where), "x", "half")
