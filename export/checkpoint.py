"""A checkpoint folder (config.json and safetensors), read one tensor at a time and without torch."""

import hashlib
import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from devices.errors import UserError
from devices.files import read_json, sha256

# The file format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header,
# then the tensors' bytes. Read here and not through the package because its numpy side knows no
# bfloat16 and gives no bytes without a copy.
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATS = ("F64", "F32", "F16", "BF16")
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shape`, safetensors `dtype` name, `file`, first byte `start`, `size` in bytes."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder; tensors are read from disk when asked for."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """The tensor `name` as float32, in memory of its own; UserError where missing or no float."""
        info = self._info(name)
        if info.dtype not in FLOATS:
            raise UserError(
                f"{info.file}: tensor {name} is {info.dtype}, not a float; save the model dequantized"
            )
        return self._map(info).astype(np.float32)

    def read_raw(self, name: str) -> tuple[str, tuple[int, ...], bytes]:
        """The tensor as it is stored: (dtype name, shape, little-endian bytes)."""
        info = self._info(name)
        return info.dtype, info.shape, self._map(info).tobytes()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise UserError(f"{self.path}: the weights hold no tensor {name}; the checkpoint is incomplete")
        return self.tensors[name]

    @staticmethod
    def _map(info: TensorInfo) -> np.ndarray:
        if info.size == 0:  # an empty range cannot be mapped
            return np.zeros(info.shape, DTYPES[info.dtype])
        raw = np.memmap(info.file, np.uint8, "r", offset=info.start, shape=(info.size,))
        return raw.view(DTYPES[info.dtype]).reshape(info.shape)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint folder `path`, whose weights are one safetensors file or an index of several.

    Headers are verified against the files' lengths; tensor bytes are not touched. UserError, one line, for
    anything missing, truncated, corrupt, pickled, or lying outside the folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; name a checkpoint folder with config.json and *.safetensors"
        )
    config = read_json(path / "config.json", "the model's configuration")
    tensors: dict[str, TensorInfo] = {}
    for file, names in _files(path).items():
        found = read_header(file)
        missing = [name for name in names if name not in found]
        if missing:
            raise UserError(
                f"{file}: {INDEX} promises tensor {missing[0]} here and it is not; copy the files again"
            )
        tensors.update(found)
    return Checkpoint(path, config, tensors)


def _files(path: Path) -> dict[Path, list[str]]:
    """Weight files in `path`, each with the tensor names that the index promises in it (none without one)."""
    single = path / "model.safetensors"
    if single.is_file():
        return {single: []}
    if (path / INDEX).is_file():
        return _indexed(path)
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return {others[0]: []}
    if others:
        raise UserError(f"{path}: several safetensors files and no {INDEX}; copy the index too")
    if any(next(path.glob(pattern), None) for pattern in PICKLES):
        raise UserError(f"{path}: pickled weights are never opened; convert them to safetensors")
    raise UserError(f"{path}: no model.safetensors; name a checkpoint folder that holds its weights")


def _indexed(path: Path) -> dict[Path, list[str]]:
    weight_map = read_json(path / INDEX, "the list of weight files").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path / INDEX}: holds no weight_map; copy the checkpoint again")
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{path / INDEX}: '{file}' is no safetensors file of this folder; mend the index")
        if not (path / file).is_file():
            raise UserError(f"{path / file}: no such file, but {INDEX} names it; copy the checkpoint again")
        files.setdefault(path / file, []).append(name)
    return files


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, whose ranges must cover its data without gap, overlap or rest."""
    total = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, total - 8):
            raise _damaged(file, "its header reaches beyond the file")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise _damaged(file, "its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _entry(file, name, entry, 8 + length, total) for name, entry in header.items()}
    end = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.size)):
        if info.start != end:
            raise _damaged(file, f"its header leaves a gap or an overlap at byte {min(info.start, end)}")
        end += info.size
    if end != total:
        raise _damaged(file, f"{total - end} bytes follow its last tensor")
    return tensors


def _entry(file: Path, name: str, entry: Any, base: int, total: int) -> TensorInfo:
    """One header entry, verified."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, f"the header entry of {name} is malformed") from None
    if not whole or not isinstance(dtype, str):
        raise _damaged(file, f"the header entry of {name} is malformed")
    if dtype not in DTYPES:
        raise UserError(
            f"{file}: tensor {name} is {dtype}, which is not read; save the model in float32 or bfloat16"
        )
    if base + end > total:
        raise _damaged(file, f"it ends before the data of {name}")
    size = prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if end - begin != size:
        raise _damaged(file, f"the data of {name} does not fit its shape")
    return TensorInfo(shape, dtype, file, base + begin, size)


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file}: truncated or corrupt safetensors ({what}); copy or download it again")


def identity(path: Path) -> str:
    """The checkpoint's name in all lineage: hex SHA-256 over (name, SHA-256) of what defines the model.

    That is config.json, tokenizer.json and every *.safetensors file of the folder, ordered by name.
    """
    path = Path(path)
    files = [path / "config.json", path / "tokenizer.json", *path.glob("*.safetensors")]
    digest = hashlib.sha256()
    for file in sorted((file for file in files if file.is_file()), key=lambda file: file.name):
        digest.update(f"{file.name}\0{sha256(file)}\n".encode())
    return digest.hexdigest()
