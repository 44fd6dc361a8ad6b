"""`export`: a checkpoint folder in, an artifact folder out, or nothing."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from devices.artifact import Artifact, seal
from devices.errors import UserError
from devices.files import read_record, refuse_existing, staged, write_json
from devices.machine import version
from export.architecture import Architecture, check, describe_model, label_names
from export.checkpoint import Checkpoint, identity, open_checkpoint
from export.gates import Gates, Judge
from export.graph import write_graph
from export.inspection import inspect
from export.quality import TOKENS
from export.recipes import Recipe, find_recipe
from export.verify import Checks, Subject, verify

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def export(
    checkpoint: Path,
    out: Path,
    recipe: str = "fp32",
    *,
    force: bool = False,
    parity: bool = True,
    quality_text: Path | None = None,
    quality_tokens: int = TOKENS,
    quality_batch: int = 1,
    gates: Gates | None = None,
    judge: Judge | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the artifact of `checkpoint` to the folder `out` and return its manifest.

    Decoder or classifier is decided by what the checkpoint is. What ONNX Runtime runs is inspected
    (export/inspection.py). With `parity`, the graph is compared with PyTorch on a small sample
    (export/parity.py). With `quality_text`, text that nothing was trained or calibrated on, a decoder's
    perplexity and argmax are measured on about `quality_tokens` tokens of it, `quality_batch` windows together
    (export/quality.py); `judge` scores a classifier on labelled rows. What these give must hold the `gates`,
    by default the recipe's (export/gates.py). What fails leaves no artifact. `progress` is told each step.

    The manifest's keys, beside those that devices/artifact.py checks:
        `bytes`: stored bytes by precision; `graph`: the graph that runs: `nodes`, `operators` by kind, `bytes`
            by precision, bytes `made_at_loading`.
        `parity`: figures of the small sample, or null.
        `quality`: null, or `text` (name, sha256, tokens, window, batch), `whole` (all positions at once) and
            `cached` (prompt, then steps), each with `perplexity` of pytorch and artifact, `perplexity_ratio`,
            `argmax_agreement` and the positions `compared`; `cached_from_whole`, the difference between the
            two; `neighbours`, how far a row's logits move in a batch; `task`, what `judge` gave; and `gates`.
        `seconds`: of `graph` (writing and inspecting it), `pytorch` (0 where its answers were kept), `checks`.

    Raises:
        UserError: a checkpoint that cannot be read or is not supported, an unknown recipe, an existing `out`,
            a text that cannot be used.
        CheckFailed: the graph is not the model, or not what the recipe says, or a gate does not hold.
    """
    checkpoint, out, chosen = Path(checkpoint), Path(out), find_recipe(recipe)
    if checkpoint.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out}: is the checkpoint itself or lies in it; choose another --out")
    if out.resolve() in checkpoint.resolve().parents:
        raise UserError(f"{out}: holds the checkpoint; choose another --out")
    refuse_existing(out, force)
    opened = open_checkpoint(checkpoint)
    arch = check(opened)
    name = identity(checkpoint)
    with staged(out, force=force) as staging:
        progress(f"writing the graph, {chosen.name}")
        start = monotonic()
        stored = write_graph(opened, arch, chosen, staging, f"toolchain {version('toolchain') or ''}".strip())
        _copy_files(opened, staging)
        manifest = _manifest(opened, arch, chosen, name, out.resolve().name, stored)
        artifact = Artifact(staging, manifest, "")
        manifest["graph"] = inspect(artifact, arch, chosen, stored)
        seconds = {"graph": round(monotonic() - start, 2)}
        checks = Checks(parity, quality_text, quality_tokens, quality_batch, gates, judge)
        manifest |= verify(Subject(artifact, opened, arch, chosen), name, checks, progress)
        manifest["seconds"] = seconds | manifest["seconds"]
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


def _manifest(
    opened: Checkpoint, arch: Architecture, chosen: Recipe, sha256: str, name: str, stored: dict[str, int]
) -> dict[str, Any]:
    lineage = {key: read_record(opened.path / f"{key}.json") for key in ("compression", "training", "glue")}
    packages = ("onnx", "onnx_ir", "onnxruntime", "numpy")
    return {
        "kind": arch.kind,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "toolchain": version("toolchain"),
        "model": describe_model(arch),
        "recipe": asdict(chosen),
        "lineage": {"checkpoint": {"name": opened.path.resolve().name, "sha256": sha256}, **lineage},
        "bytes": stored,
        "task": describe_task(arch, opened.config, lineage["glue"]),
        "versions": {package: version(package) for package in packages},
    }


def describe_task(
    arch: Architecture, config: dict[str, Any], glue: dict[str, Any] | None
) -> dict[str, Any] | None:
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
    return [*lines, _parity_line(manifest["parity"]), *_quality_lines(manifest["quality"])]


def _parity_line(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "parity: not checked"
    text = f"parity: argmax agreement {figures['argmax_agreement']:.1%}, largest difference "
    text += f"{figures['max_error']:.2g}"
    if "perplexity_ratio" in figures:
        text += f", perplexity x {figures['perplexity_ratio']:.4f}"
        text += f", {figures['greedy_tokens']} greedy tokens equal"
    return text


def _quality_lines(quality: dict[str, Any] | None) -> list[str]:
    if quality is None:
        return []
    if task := quality.get("task"):
        return [
            f"quality: {task['metric']} {task['artifact']:.4f} on {task['rows']:,} rows of {task['name']}, "
            f"PyTorch {task['pytorch']:.4f}"
        ]
    lines = []
    for view, words in (("whole", "all positions at once"), ("cached", "by cached steps")):
        if found := quality.get(view):
            lines.append(
                f"quality {words}: perplexity {found['perplexity']['artifact']:.2f} "
                f"({100 * (found['perplexity_ratio'] - 1):+.2f} %), argmax agreement "
                f"{found['argmax_agreement']:.2%} on {found['compared']:,} tokens"
            )
    return lines
