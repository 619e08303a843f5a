"""Reads files of weights as tensors by name. Nothing in them is executed: whatever is pickled may only be data.

.safetensors          read by the library of that name
.pt, .pth, .pyth      written by torch.save; read by torch.load(weights_only=True)
.pkl                  the same, or a plain pickle of NumPy arrays, as Caffe2 wrote them and SlowFast's model zoo has them
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import UserError

Tensors = dict[str, torch.Tensor]
WRAPPERS = ("model_state", "state_dict", "model", "blobs")
"""The keys under which files keep the tensors: SlowFast's, PyTorchVideo's and TimeSformer's, mmaction2's, others', Caffe2's."""
TORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
"""The first bytes of what torch.save writes: a zip archive, and before torch 1.6 a pickled number."""
RECONSTRUCT = np.zeros(0).__reduce__()[0]
"""NumPy's function that makes the empty array whose content a pickle then sets; versions keep it in different modules."""
RESAVE = (
    "if you trust the file, write its tensors alone, by the program that made it: "
    "torch.save({'state_dict': network.state_dict()}, 'weights.pth')"
)


def read_weight_file(path: Path) -> Tensors:
    """Reads the tensors of a file, without what training kept beside them. Raises UserError if it is missing, holds anything
    else than data, or no mapping of names to tensors."""
    if not path.is_file():
        raise UserError("there is no such file")
    try:
        tree = _read_tree(path)
    except (OSError, RuntimeError, ValueError, SafetensorError, EOFError, ModuleNotFoundError, MemoryError) as error:
        raise UserError(f"cannot be read: {_first_line(error)}") from None
    except Exception as error:  # pickle's own, and whatever a malformed pickle makes of permitted calls
        raise UserError(f"cannot be read as data only, and code in it is not run: {_first_line(error)}; {RESAVE}") from None
    for name in WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            tree = tree[name]
    if not isinstance(tree, Mapping) or not tree or not all(isinstance(name, str) for name in tree):
        raise UserError("holds no mapping of names to tensors")
    tensors = {name: _convert(value) for name, value in tree.items()}
    if foreign := [name for name, value in tensors.items() if value is None]:
        raise UserError(f"holds no mapping of names to tensors: {foreign[0]} is {_name_kind(tree[foreign[0]])}; {RESAVE}")
    return {name: value for name, value in tensors.items() if value is not None}


def _first_line(error: BaseException) -> str:
    """Returns the sentence that matters of an error; torch's others say how to let the code in a file run."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line), lines[0]).strip().partition(". ")[0]


def _read_tree(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:
        start = file.read(max(map(len, TORCH_FILES)))
        if path.suffix in (".pkl", ".pickle") and not start.startswith(TORCH_FILES):
            file.seek(0)
            return ArrayUnpickler(file, encoding="latin1").load()  # NumPy's arrays of Python 2 need it
    return torch.load(path, map_location="cpu", weights_only=True)


def _convert(value: Any) -> torch.Tensor | None:
    if isinstance(value, np.ndarray | np.number) and np.asarray(value).dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return value if isinstance(value, torch.Tensor) and _name_kind(value) == "Tensor" else None


def _name_kind(value: Any) -> str:
    """Returns the name of a value's type, and of tensors whose numbers cannot be copied what else they are."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    kinds = {"sparse": value.layout is not torch.strided, "quantized": value.is_quantized, "empty (meta)": value.is_meta}
    return " ".join([*(kind for kind, applies in kinds.items() if applies), "Tensor"])


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of numbers, texts, lists, tuples, dicts and NumPy arrays of numbers; refuses every other name in it."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name of the pickle stands for. Raises UnpicklingError for a name that no array needs."""
        where = module.replace("numpy._core.", "numpy.core.")
        known: dict[tuple[str, str], Callable[[], Any]] = {
            ("numpy", "ndarray"): lambda: np.ndarray,
            ("numpy", "dtype"): lambda: np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): lambda: RECONSTRUCT,
            ("numpy.core.multiarray", "scalar"): lambda: _make_number,
            ("numpy.core.numeric", "_frombuffer"): lambda: _make_array,
            ("collections", "OrderedDict"): lambda: OrderedDict,
            ("_codecs", "encode"): lambda: _encode,
        }
        if (where, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return known[where, name]()


def _make_number(dtype: Any, content: Any) -> Any:
    """Makes a number of NumPy of its bytes."""
    return _make_array(content.encode("latin1") if isinstance(content, str) else content, dtype, (), "C")[()]


def _make_array(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Makes an array of its bytes, as pickles of protocol 5 ask for."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise pickle.UnpicklingError("an array of objects is not an array of numbers")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    """Makes bytes of the text as which Python 3 pickles them by the protocols of Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"_codecs.encode of {encoding!r} is not part of an array")
    return text.encode("latin1")
