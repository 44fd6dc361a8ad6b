"""`export`: a checkpoint folder in, an artifact folder out, or nothing."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import onnx

from devices.artifact import GRAPH, Artifact, seal
from devices.errors import CheckFailed, UserError
from devices.files import read_record, refuse_existing, staged, write_json
from devices.machine import version
from devices.session import open_session
from export import fallback
from export import parity as checks
from export.architecture import Model, check, describe_model, label_names
from export.checkpoint import Checkpoint, identity, open_checkpoint
from export.fallback import Traced
from export.graph import write_graph
from export.recipes import Recipe, find_recipe, recipe_for
from export.smooth import source_for

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
LARGE = 1 << 16  # elements from which a float matrix has no place in a quantized graph


def export(
    checkpoint: Path,
    out: Path,
    recipe: str = "fp32",
    *,
    force: bool = False,
    parity: bool = True,
    calibration_text: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the artifact of `checkpoint` to the folder `out` and return its manifest.

    Decoder or classifier is decided by what the checkpoint is; an architecture whose graph this
    project does not write is traced (see export/fallback.py). With `parity`, the graph is compared with PyTorch
    (see export/parity.py); what fails leaves no artifact. `calibration_text` is a UTF-8 file for recipes that
    smooth or use GPTQ: text like that of use, and none that anything is measured on. Without one a decoder
    is calibrated on text that it writes itself; a classifier without one, and a traced graph, have their
    weights rounded to nearest. The manifest's `calibration` says which. `progress` is told each step.

    Raises:
        UserError: a checkpoint that cannot be read or is not supported, an unknown recipe, an existing `out`.
        CheckFailed: the graph is not the model.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    find_recipe(recipe)
    if checkpoint.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out}: is the checkpoint itself or lies in it; choose another --out")
    if out.resolve() in checkpoint.resolve().parents:
        raise UserError(f"{out}: holds the checkpoint; choose another --out")
    refuse_existing(out, force)
    opened = open_checkpoint(checkpoint)
    known = None if fallback.is_needed(opened.config) else check(opened)
    chosen = recipe_for(recipe, known.kind) if known else fallback.recipe_of(opened.config, recipe)
    name, producer = identity(checkpoint), f"toolchain {version('toolchain') or ''}".strip()
    with staged(out, force=force) as staging:
        arch: Model
        calibration: dict[str, Any] | None = None
        if known is None:
            arch, stored = fallback.trace(opened, chosen, staging, producer, progress)
            onnx.checker.check_model(str(staging / GRAPH))
        else:
            source, calibration = source_for(opened, known, chosen, calibration_text, progress)
            progress(f"writing the graph, {chosen.name}")
            arch, stored = known, write_graph(opened, known, chosen, staging, producer, source)
            _inspect(staging, chosen)
        _copy_files(opened, staging)
        manifest = _manifest(opened, arch, chosen, name, out.resolve().name, stored)
        manifest["calibration"] = calibration
        artifact = Artifact(staging, manifest, "")
        if parity:
            ids = checks.sample_ids(checkpoint, arch)
            wanted = checks.reference(checkpoint, name, ids, arch.kind, progress)
            progress("comparing with PyTorch")
            manifest["parity"] = checks.compare(artifact, arch, chosen, ids, wanted)
        else:
            open_session(artifact, 1)  # that it loads is the least to be known
        return seal(staging, manifest)


def _copy_files(opened: Checkpoint, staging: Path) -> None:
    """Configuration and tokenizer as they are; generation_config.json from config.json if there is none."""
    for name in COPIED:
        if (opened.path / name).is_file():
            shutil.copyfile(opened.path / name, staging / name)
    if not (staging / "generation_config.json").exists():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        found = {key: opened.config[key] for key in keys if opened.config.get(key) is not None}
        write_json(staging / "generation_config.json", found)


def _inspect(folder: Path, chosen: Recipe) -> None:
    """ONNX's checker over the graph, and no large matrix left in float where the recipe quantizes."""
    onnx.checker.check_model(str(folder / GRAPH))
    if chosen.bits == 32:
        return
    graph = onnx.load(str(folder / GRAPH), load_external_data=False).graph
    for tensor in graph.initializer:
        large = tensor.data_type == onnx.TensorProto.FLOAT and prod(tensor.dims) > LARGE
        if large and not tensor.name.endswith(".scales") and not tensor.name.startswith("rotary."):
            raise CheckFailed(
                f"{chosen.name}: {tensor.name} {list(tensor.dims)} was left in float; report this"
            )


def _manifest(
    opened: Checkpoint, arch: Any, chosen: Recipe, sha256: str, name: str, stored: dict[str, int]
) -> dict[str, Any]:
    lineage = {key: read_record(opened.path / f"{key}.json") for key in ("compression", "training", "glue")}
    traced = isinstance(arch, Traced)
    packages = ("onnx", "onnx_ir", "onnxruntime", "numpy", *(fallback.PACKAGES if traced else ()))
    return {
        "kind": arch.kind,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "toolchain": version("toolchain"),
        "model": arch.model if traced else describe_model(arch),
        "cache": None if arch.kind == "classifier" else "growing" if traced else "fixed",
        "recipe": asdict(chosen),
        "lineage": {"checkpoint": {"name": opened.path.resolve().name, "sha256": sha256}, **lineage},
        "parity": None,
        "bytes": stored,
        "task": describe_task(arch, opened.config, lineage["glue"]),
        "versions": {package: version(package) for package in packages},
    }


def describe_task(arch: Model, config: dict[str, Any], glue: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a classifier decides: its glue.json's task, or the labels of its config where it has none."""
    if arch.kind == "decoder":
        return None
    if glue is None:
        labels = label_names(config) or None
        return {"name": None, "columns": None, "labels": labels, "metric": None, "problem": None}
    return {
        "name": glue.get("task"),
        **{key: glue.get(key) for key in ("columns", "labels", "metric", "problem")},
    }


def summary(manifest: dict[str, Any], out: Path) -> list[str]:
    """What was written, in plain lines for a terminal."""
    size = sum(entry["size"] for entry in manifest["files"].values())
    model, parts = manifest["model"], ", ".join(f"{k} {v / 1e6:.2f} MB" for k, v in manifest["bytes"].items())
    lines = [
        f"{out}: {manifest['kind']}, {manifest['recipe']['name']}, {model['layers']} layers, "
        f"{model['parameters'] / 1e6:.1f} M parameters, {size / 1e6:.1f} MB ({parts})"
    ]
    calibration = manifest["calibration"]
    if calibration and calibration["on"] == "nothing":
        lines.append("not calibrated: weights were rounded to nearest")
    figures = manifest["parity"]
    if figures is None:
        return [*lines, "parity: not checked"]
    text = f"parity: argmax agreement {figures['argmax_agreement']:.1%}, largest difference "
    text += f"{figures['max_error']:.2g}"
    if "perplexity_ratio" in figures:
        text += f", perplexity x {figures['perplexity_ratio']:.4f}"
        text += f", {figures['greedy_tokens']} greedy tokens equal"
    return [*lines, text]
