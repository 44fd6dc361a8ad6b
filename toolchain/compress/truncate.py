"""The student's folder: some of the teacher's layers renamed, everything around them copied byte for byte."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from devices.errors import UserError
from devices.files import write_json
from export.architecture import Architecture, check, layer_tensors, outer_tensors
from export.checkpoint import DTYPES, Checkpoint, open_checkpoint

WEIGHTS = "model.safetensors"
# What a checkpoint's folder holds besides config and weights and a student inherits as it is.
INHERITED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)
# transformers' own second name for the layer count (its configs' attribute_map). Said here because their
# config classes import torch, and cutting needs none.
ALIASES = {"num_hidden_layers": "n_layer"}


def truncate(
    teacher: Path, keep: list[int], staging: Path, progress: Callable[[int], object] = lambda size: None
) -> None:
    """Write to `staging` the student that keeps layers `keep` (increasing, 0-indexed) of `teacher`.

    Embeddings, positions, final norm, head and the files of the tokenizer are carried over; dtype and widths
    stay. One tensor is in memory at a time; `progress` is told each one's bytes. Buffers that old checkpoints
    carry (attention masks) and a second copy of a tied head are left behind. Names, shapes and count of what
    was written are verified. UserError for a teacher whose config and weights disagree, or one that is not a
    language model.
    """
    checkpoint, arch = open_teacher(teacher)
    renamed = student_tensors(arch, keep)
    staging.mkdir(parents=True, exist_ok=True)
    write_json(staging / "config.json", cut_config(checkpoint.config, keep))
    copy_inherited(teacher, staging)
    stream(checkpoint, renamed, staging / WEIGHTS, progress)
    verify(staging, set(renamed))


def randomize(teacher: Path, keep: list[int], seed: int, staging: Path) -> None:
    """Write a model of the same shape as `truncate`'s student, tokenizer included, with fresh weights.

    The weights are those that transformers' own initialization draws with `seed`, stored in the dtype of
    the teacher's embedding. It is the control: what the kept layers are worth shows against it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    from toolchain.quiet import quiet

    checkpoint, arch = open_teacher(teacher)
    staging.mkdir(parents=True, exist_ok=True)
    write_json(staging / "config.json", cut_config(checkpoint.config, keep))
    set_seed(seed)
    stored = checkpoint.tensors[outer_tensors(arch)["embedding"][0]].dtype
    with quiet():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(staging), dtype=torch.float32)
        model.to(getattr(torch, np.dtype(DTYPES[stored]).name)).save_pretrained(staging, max_shard_size="1TB")
    copy_inherited(teacher, staging)
    verify(staging, None)


def open_teacher(teacher: Path) -> tuple[Checkpoint, Architecture]:
    """The opened checkpoint and its architecture; UserError where they disagree or it is a classifier."""
    checkpoint = open_checkpoint(teacher)
    arch = check(checkpoint)
    _check_keys(checkpoint.config, arch)
    if arch.labels is not None:
        raise UserError(f"{teacher}: is a classifier; compress the language model it was fine-tuned from")
    return checkpoint, arch


def student_tensors(arch: Architecture, keep: list[int]) -> dict[str, str]:
    """The student's tensor names -> the teacher's, in the teacher's spelling (with its prefix or without)."""
    renamed = {name: name for name, _ in outer_tensors(arch).values()}
    for new, old in enumerate(keep):
        source, target = layer_tensors(arch, old), layer_tensors(arch, new)
        renamed.update({target[slot][0]: source[slot][0] for slot in source})
    return renamed


def layer_key(config: Mapping[str, Any]) -> str:
    """The key of config.json that holds the layer count, as optimum normalizes it for the model type."""
    key: str = _normalized(config).NUM_LAYERS
    return key if key in config else ALIASES.get(key, key)


def _normalized(config: Mapping[str, Any]) -> Any:
    """optimum's view of `config`, its own names over the model type's; KeyError where it knows none."""
    from optimum.utils import NormalizedConfigManager

    normal = NormalizedConfigManager.get_normalized_config_class(config["model_type"])
    return normal(SimpleNamespace(**config, attribute_map=ALIASES))


def _check_keys(config: Mapping[str, Any], arch: Architecture) -> None:
    """UserError where optimum reads other sizes from `config` than we do (docs/adr/0005-config-keys.md)."""
    try:
        normal = _normalized(config)
    except KeyError:  # a model type that optimum has no entry for
        return
    for ours, theirs in (
        ("layers", "num_layers"),
        ("hidden", "hidden_size"),
        ("heads", "num_attention_heads"),
    ):
        said = getattr(normal, theirs, None)
        if said not in (None, getattr(arch, ours)):
            raise UserError(
                f"config.json: says {getattr(arch, ours)} {ours} by {arch.family.config[ours]}, but {said} as "
                f"optimum reads {arch.model_type}; make the two keys agree"
            )


def cut_config(config: Mapping[str, Any], keep: list[int]) -> dict[str, Any]:
    """`config` of a model that keeps layers `keep`: the count, and every setting that is per layer.

    A list with one entry per layer whose key speaks of layers (`layer_types`, `no_rope_layers`) loses the
    entries of the dropped ones; `max_window_layers`, the first layer with a sliding window, moves down by
    as many dropped layers as lay below it. UserError where a layer's arithmetic depends on its number.
    """
    key = layer_key(config)
    layers = config[key]
    if config.get("scale_attn_by_inverse_layer_idx") and keep != list(range(len(keep))):
        raise UserError(
            "config.json: scale_attn_by_inverse_layer_idx ties each layer to its number; use --select first"
        )
    cut = dict(config)
    for name, value in config.items():
        if "layer" in name and isinstance(value, list) and len(value) == layers:
            cut[name] = [value[i] for i in keep]
    if isinstance(config.get("max_window_layers"), int):
        cut["max_window_layers"] = sum(i < config["max_window_layers"] for i in keep)
    cut[key] = len(keep)
    cut.pop("_name_or_path", None)
    return cut


def copy_inherited(teacher: Path, staging: Path) -> None:
    """Copy tokenizer, chat template, generation config and license, where the teacher has them."""
    for name in INHERITED:
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, staging / name)


def stream(
    checkpoint: Checkpoint, renamed: Mapping[str, str], file: Path, progress: Callable[[int], object]
) -> None:
    """Write tensors `renamed` (new name -> name in `checkpoint`) as one safetensors file, one at a time.

    Written here because the package's own writer wants every tensor in memory at once. As it does, widest
    dtype first, then by name (keeps every tensor aligned), and the header padded to eight bytes.
    """

    def order(name: str) -> tuple[int, str]:
        return -np.dtype(DTYPES[checkpoint.tensors[renamed[name]].dtype]).itemsize, name

    names = sorted(renamed, key=order)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        info = checkpoint.tensors[renamed[name]]
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [end, end + info.size]}
        end += info.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            progress(out.write(checkpoint.read_raw(renamed[name])[2]))


def verify(student: Path, names: set[str] | None) -> Architecture:
    """Read the written student back: its tensors are exactly `names` (None: any) and what its config says."""
    checkpoint, arch = open_teacher(student)
    if names is not None and set(checkpoint.tensors) != names:
        odd = sorted(set(checkpoint.tensors) ^ names)
        raise UserError(
            f"{student}: {len(odd)} tensors were not written as planned, {odd[0]} first; try again"
        )
    return arch
