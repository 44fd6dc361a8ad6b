"""What may be called a teacher: a folder, a hub id from its cache, a GGUF file; and what may not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from devices.errors import UserError
from devices.files import cache_folder, sha256
from toolchain.compress.teacher import resolve, teacher_name
from toolchain.compress.truncate import truncate

# A llama checkpoint's tensor names -> GGUF's.
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: rotary pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(checkpoint: Path, file: Path, kind: Kind = Kind.Q8_0) -> None:
    """`checkpoint` (a tied llama) as GGUF, its matrices quantized to `kind`, its tokenizer included."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_types([1] * len(vocabulary["vocab"]))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            tensor = interleaved(tensor, config[heads])
        tensor = np.ascontiguousarray(tensor, np.float32)
        if tensor.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """What GGUF calls a llama checkpoint's tensor."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[
            name
        ]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


@pytest.fixture(scope="module")
def gguf_file(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny llama, 8 bits a weight."""
    file = tmp_path_factory.mktemp("gguf") / "tiny-q8.gguf"
    write_gguf(llama_checkpoint, file)
    return file


def test_a_folder_is_itself(llama_checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint folder is used where it lies, and nothing is cached."""
    assert resolve(str(llama_checkpoint), tmp_path) == llama_checkpoint
    assert teacher_name(f"{llama_checkpoint}/") == llama_checkpoint.name
    assert not list(tmp_path.iterdir())


def test_gguf_is_converted_once(gguf_file: Path, llama_checkpoint: Path, tmp_path: Path) -> None:
    """A GGUF file becomes a float32 checkpoint folder named by its hash; the second time nothing is said."""
    said: list[str] = []
    folder = resolve(str(gguf_file), tmp_path, said.append)
    assert folder == tmp_path / "gguf" / sha256(gguf_file) / "tiny-q8"
    assert len(said) == 1
    assert resolve(str(gguf_file), tmp_path, said.append) == folder
    assert len(said) == 1
    assert teacher_name(str(gguf_file)) == teacher_name(str(folder)) == "tiny-q8"
    renamed = shutil.copy(gguf_file, tmp_path / "same.gguf")
    assert resolve(str(renamed), tmp_path, said.append) == folder
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(gguf_file.parent) not in (folder / "config.json").read_text()

    ids = torch.arange(5, 29).reshape(2, 12)
    with torch.inference_mode():
        teacher, original = (
            AutoModelForCausalLM.from_pretrained(p).eval()(ids).logits for p in (folder, llama_checkpoint)
        )
    assert teacher.dtype == torch.float32
    assert (teacher - original).abs().max() < 0.05 * original.abs().max()
    text = "the quick brown fox, again"
    assert (
        AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        == AutoTokenizer.from_pretrained(llama_checkpoint)(text)["input_ids"]
    )


def test_a_killed_conversion_is_not_taken_for_a_teacher(gguf_file: Path, tmp_path: Path) -> None:
    """What a kill left in the cache is made anew, not used."""
    left = tmp_path / "gguf" / sha256(gguf_file) / ".tiny-q8.staging"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert resolve(str(gguf_file), tmp_path).name == "tiny-q8"
    assert not left.exists()


def test_gguf_teacher_can_be_cut(gguf_file: Path, tmp_path: Path) -> None:
    """The converted folder is a teacher like any other."""
    truncate(resolve(str(gguf_file), tmp_path / "cache"), [0, 3], tmp_path / "student")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2


def test_records_call_a_gguf_teacher_by_its_stem(gguf_file: Path) -> None:
    """Not by the cache folder it was converted into."""
    assert teacher_name(str(gguf_file)) == gguf_file.stem


def test_a_tokenizer_that_cannot_be_converted_is_one_line(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' OSError without a number is about the file, and says so in one line."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no tokenizer in it")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"transformers cannot read this GGUF .no tokenizer in it."):
        resolve(str(gguf_file), tmp_path)


def test_an_interrupted_conversion_leaves_nothing(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while converting: the cache holds no folder that looks finished."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        resolve(str(gguf_file), tmp_path)
    assert not list((tmp_path / "gguf").glob("*/*"))


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME moves the cache; without it, it is below ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "toolchain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/toolchain"


def hub_cache(cache: Path, name: str, checkpoint: Path) -> None:
    """`checkpoint` as huggingface_hub's cache would hold model `name`."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    shutil.copytree(checkpoint, repository / "snapshots/c0ffee")


def resolve_offline(teacher: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """`resolve` in a process of its own: the hub's client reads its settings when imported."""
    code = (
        "import sys; from pathlib import Path; from toolchain.compress.teacher import resolve, teacher_name\n"
        "from devices.errors import UserError\n"
        "try: print(resolve(sys.argv[1], Path('none')), teacher_name(sys.argv[1]), 'torch' in sys.modules)\n"
        "except UserError as error: sys.exit(str(error))"
    )
    env = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code, teacher], capture_output=True, text=True, env=env)


def test_hub_id_from_the_cache(llama_checkpoint: Path, tmp_path: Path) -> None:
    """A hub id resolves to its snapshot, offline too, without torch; its name stays the id."""
    hub_cache(tmp_path, "someone/tiny-llama", llama_checkpoint)
    done = resolve_offline("someone/tiny-llama", tmp_path)
    snapshot = tmp_path / "models--someone--tiny-llama/snapshots/c0ffee"
    assert done.stdout.split() == [str(snapshot), "someone/tiny-llama", "False"], done.stderr
    assert teacher_name(str(snapshot)) == "someone/tiny-llama"


def test_hub_id_of_another_architecture(llama_checkpoint: Path, tmp_path: Path) -> None:
    """An architecture that is not supported is refused from its config."""
    other = tmp_path / "other"
    shutil.copytree(llama_checkpoint, other)
    (other / "config.json").write_text('{"model_type": "mamba"}')
    hub_cache(tmp_path, "someone/mamba", other)
    assert "unknown architecture 'mamba'" in resolve_offline("someone/mamba", tmp_path).stderr


def test_neither_folder_nor_reachable(tmp_path: Path) -> None:
    """A name that is nothing here and cannot be fetched: one line that says both."""
    done = resolve_offline("someone/nothing", tmp_path)
    assert done.stderr.count("\n") == 1
    assert "someone/nothing: no such folder or file here, and the hub cannot give it" in done.stderr


def damaged(tmp_path: Path, name: str, content: bytes) -> str:
    """A file of that content, as the command line would name it."""
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


@pytest.mark.parametrize("keep", [4, 5, 24, 100, 1000, 3000, -1000])
def test_truncated_gguf(keep: int, gguf_file: Path, tmp_path: Path) -> None:
    """A GGUF file cut short in its header or in its data: one line, no traceback, no cache."""
    teacher = damaged(tmp_path, "short.gguf", gguf_file.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or corrupt GGUF"):
        resolve(teacher, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    """Refused by name, from the file's metadata."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="unknown architecture 'mamba'"):
        resolve(str(tmp_path / "m.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("./nowhere", "no such folder or file"),
        ("/nowhere/at/all", "no such folder or file"),
        ("a/b/c", "no such folder or file"),
        ("", "no such folder or file"),
        ("two words", "no such folder or file"),
        ("../../etc", "no such folder or file"),
    ],
)
def test_what_is_no_teacher(teacher: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that do not exist are answered at once, without asking the hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        resolve(teacher, tmp_path)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    """A text file is no teacher, and an empty folder neither."""
    with pytest.raises(UserError, match="is no GGUF file"):
        resolve(damaged(tmp_path, "notes.gguf", b"hello there"), tmp_path)
    with pytest.raises(UserError, match="is no GGUF file"):
        resolve(damaged(tmp_path, "empty.gguf", b""), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        resolve(str(tmp_path / "empty"), tmp_path)
