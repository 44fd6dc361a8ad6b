import json
import os
import pickle
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from devices.errors import UserError
from export import checkpoint as module
from export.checkpoint import identity, open_checkpoint

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def folder(path: Path, weights=None, config=None) -> Path:
    """A small good checkpoint folder."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {"model_type": "gpt2"}))
    save_file(WEIGHTS if weights is None else weights, path / "model.safetensors")
    return path


def sharded(path: Path, weight_map: dict[str, str]) -> Path:
    """The same with an index over `one.safetensors`."""
    folder(path)
    (path / "model.safetensors").rename(path / "one.safetensors")
    (path / module.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return path


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A folder whose weight file has this header and these bytes after it."""
    folder(path)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_reads_what_safetensors_wrote(tmp_path):
    """Shapes, names and values are those that the safetensors package wrote; floats come as float32."""
    opened = open_checkpoint(folder(tmp_path / "m"))
    assert opened.config["model_type"] == "gpt2"
    assert {name: info.shape for name, info in opened.tensors.items()} == {"a": (2, 3), "b": (4,)}
    np.testing.assert_array_equal(opened.read("a"), WEIGHTS["a"])
    assert opened.read("b").dtype == np.float32
    assert opened.read_raw("b") == ("F16", (4,), WEIGHTS["b"].tobytes())


def test_bfloat16(tmp_path):
    """bfloat16 is read exactly, which numpy alone cannot."""
    values = np.array([1.0, -2.5, 3.140625], ml_dtypes.bfloat16)
    header = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    opened = open_checkpoint(raw(tmp_path / "m", header, values.tobytes()))
    np.testing.assert_array_equal(opened.read("x"), [1.0, -2.5, 3.140625])


def test_shards(tmp_path):
    """Tensors of several files are found through the index."""
    path = sharded(tmp_path / "m", {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    save_file({"c": np.zeros(2, np.float32)}, path / "two.safetensors")
    opened = open_checkpoint(path)
    assert sorted(opened.tensors) == ["a", "b", "c"]
    assert opened.tensors["c"].file.name == "two.safetensors"


def test_opening_reads_headers_only(tmp_path):
    """Opening a checkpoint of a terabyte is cheap: tensor bytes are not touched."""
    size = 1 << 40
    header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    path = raw(tmp_path / "m", header)
    with (path / "model.safetensors").open("r+b") as file:
        try:
            file.truncate(file.seek(0, os.SEEK_END) + size)
        except OSError:
            pytest.skip("no sparse files here")
    assert open_checkpoint(path).tensors["x"].size == size


def test_identity_follows_content(tmp_path):
    """The identity is the same for a copy and another for one changed weight; other files do not matter."""
    one, two = folder(tmp_path / "1"), folder(tmp_path / "2")
    (two / "README.md").write_text("hello")
    assert identity(one) == identity(two)
    save_file({**WEIGHTS, "b": np.zeros(4, np.float16)}, two / "model.safetensors")
    assert identity(one) != identity(two)


def _index(path, text):
    folder(path).joinpath("model.safetensors").unlink()
    (path / module.INDEX).write_text(text)


def _overwrite(path, data):
    folder(path).joinpath("model.safetensors").write_bytes(data)


def _entry(**change):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}


BAD = {
    "no folder": (lambda p: None, "no such folder"),
    "no config": (lambda p: folder(p).joinpath("config.json").unlink(), "config.json"),
    "config not JSON": (lambda p: folder(p).joinpath("config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda p: folder(p).joinpath("config.json").write_text("[]"), "JSON object"),
    "no weights": (lambda p: folder(p).joinpath("model.safetensors").unlink(), "no model.safetensors"),
    "empty file": (lambda p: _overwrite(p, b""), "truncated"),
    "header beyond": (
        lambda p: folder(p).joinpath("model.safetensors").write_bytes(b"\xff" * 40),
        "truncated",
    ),
    "data cut": (lambda p: raw(p, _entry(), b"1234567"), "ends before"),
    "data too long": (lambda p: raw(p, _entry(), b"12345678xx"), "corrupt safetensors .2 bytes follow"),
    "bytes without a tensor": (lambda p: raw(p, {}, b"12"), "2 bytes follow"),
    "a gap before the data": (
        lambda p: raw(p, _entry(data_offsets=[4, 12]), b"123412345678"),
        "a gap or an overlap",
    ),
    "two tensors in one place": (
        lambda p: raw(p, _entry() | {"b": _entry()["a"]}, b"12345678"),
        "a gap or an overlap",
    ),
    "header garbage": (lambda p: raw(p, b"{nonsense"), "not valid JSON"),
    "header not UTF-8": (lambda p: raw(p, b"\xff\xfe\xfd"), "not valid JSON"),
    "header a list": (lambda p: raw(p, []), "not a JSON object"),
    "entry a number": (lambda p: raw(p, {"a": 3}), "malformed"),
    "negative shape": (lambda p: raw(p, _entry(shape=[-2]), b"12345678"), "malformed"),
    "shape a string": (lambda p: raw(p, _entry(shape="2"), b"12345678"), "malformed"),
    "offsets missing": (lambda p: raw(p, {"a": {"dtype": "F32", "shape": [2]}}), "malformed"),
    "offsets reversed": (lambda p: raw(p, _entry(data_offsets=[8, 0]), b"12345678"), "does not fit"),
    "shape too large": (lambda p: raw(p, _entry(shape=[3]), b"12345678"), "does not fit"),
    "strange dtype": (lambda p: raw(p, _entry(dtype="F8_E4M3"), b"12345678"), "F8_E4M3"),
    "index leaves the folder": (lambda p: sharded(p, {"a": "../m/one.safetensors"}), "no safetensors file"),
    "index absolute": (lambda p: sharded(p, {"a": "/etc/passwd.safetensors"}), "no safetensors file"),
    "index file missing": (lambda p: sharded(p, {"a": "two.safetensors"}), "no such file"),
    "index tensor missing": (lambda p: sharded(p, {"z": "one.safetensors"}), "promises tensor z"),
    "index without map": (lambda p: _index(p, "{}"), "no weight_map"),
    "index not JSON": (lambda p: _index(p, "x"), "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_in_one_line(tmp_path, case):
    """What cannot be read is a UserError of one line that names the place and what to do."""
    make, expected = BAD[case]
    make(tmp_path / "m")
    with pytest.raises(UserError, match=expected) as caught:
        open_checkpoint(tmp_path / "m")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_pickles_are_never_opened(tmp_path):
    """A folder with pickled weights only is refused without unpickling."""
    path = folder(tmp_path / "m")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(WEIGHTS))
    with pytest.raises(UserError, match="never opened; convert"):
        open_checkpoint(path)


def test_reading_what_is_not_there_or_no_float(tmp_path):
    """A missing tensor and an integer one are refused by name."""
    opened = open_checkpoint(folder(tmp_path / "m", {"i": np.ones(2, np.int64)}))
    with pytest.raises(UserError, match="no tensor z"):
        opened.read("z")
    with pytest.raises(UserError, match="I64"):
        opened.read("i")
