"""`export`: a checkpoint folder in, an artifact folder out, or nothing."""

import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import onnx

from devices.artifact import GRAPH, Artifact, seal
from devices.errors import UserError
from devices.files import read_record, refuse_existing, staged, write_json
from devices.machine import version
from export import fallback
from export.architecture import Architecture, Model, check, describe_model, is_classifier, label_names
from export.calibrate import calibration_ids
from export.checkpoint import Checkpoint, identity, open_checkpoint
from export.fallback import Traced
from export.gates import Gates, Judge
from export.genai import write_genai_config
from export.graph import write_graph
from export.inspection import inspect
from export.quality import TOKENS
from export.recipes import Recipe, find_recipe, recipe_for
from export.smooth import calibrated
from export.verify import Checks, Subject, verify
from export.weights import Source

Sources = Callable[..., Source]
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
    isa: Collection[str] | None = None,
    force: bool = False,
    parity: bool = True,
    calibration_text: Path | None = None,
    quality_text: Path | None = None,
    quality_tokens: int = TOKENS,
    quality_batch: int = 1,
    gates: Gates | None = None,
    judge: Judge | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the artifact of `checkpoint` to the folder `out` and return its manifest.

    Decoder or classifier is decided by what the checkpoint is; an architecture whose graph this project does
    not write is traced (export/fallback.py). What ONNX Runtime runs is inspected (export/inspection.py).
    `isa` are the target's instruction sets (devices/machine.py), by which one of two int8 kernels may be taken.
    `calibration_text` is a UTF-8 file for recipes that smooth or use GPTQ: text like that of use, and none that
    anything is measured on. Without it nothing is smoothed, and a decoder's GPTQ is calibrated on what the model
    writes itself; a classifier without it, and a traced graph, have their weights rounded to nearest.

    With `parity`, the graph is compared with PyTorch on a small sample (export/parity.py). With `quality_text`,
    text that nothing was trained or calibrated on, a decoder's perplexity and argmax are measured on about
    `quality_tokens` tokens of it, `quality_batch` windows together (export/quality.py); `judge` scores a
    classifier on labelled rows. What these give must hold the `gates`, by default the recipe's
    (export/gates.py). What fails leaves no artifact. `progress` is told each step.

    The manifest's keys, beside those that devices/artifact.py checks:
        `bytes`: stored bytes by precision; `graph`: the graph that runs (null if traced): `nodes`, `operators`
            by kind, `bytes` by precision, bytes `made_at_loading`.
        `calibration`: null, or what it was `on`: `text` (with its `sha256`), the model's own `samples`, or
            `nothing`; and the `tokens`.
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
    checkpoint, out = Path(checkpoint), Path(out)
    find_recipe(recipe)
    _refuse_overlap(checkpoint, out)
    refuse_existing(out, force)
    opened = open_checkpoint(checkpoint)
    known = None if fallback.is_needed(opened.config) else check(opened)
    chosen = recipe_for(recipe, known.kind, isa) if known else fallback.recipe_of(opened.config, recipe)
    name = identity(checkpoint)
    with staged(out, force=force) as staging:
        start = monotonic()
        arch, stored, sources, calibration = _write(
            opened, known, chosen, staging, calibration_text, progress
        )
        _copy_files(opened, staging)
        if known:
            write_genai_config(staging, known)
        manifest = _manifest(opened, arch, chosen, name, out.resolve().name, stored)
        manifest["calibration"] = calibration
        artifact = Artifact(staging, manifest, "")
        manifest["graph"] = inspect(artifact, known, chosen, stored) if known else None
        seconds = {"graph": round(monotonic() - start, 2)}
        checks = Checks(parity, quality_text, quality_tokens, quality_batch, gates, judge)
        manifest |= verify(Subject(artifact, opened, arch, chosen, sources), name, checks, progress)
        manifest["seconds"] = seconds | manifest["seconds"]
        return seal(staging, manifest)


def _refuse_overlap(checkpoint: Path, out: Path) -> None:
    """UserError where writing `out` would touch the checkpoint's own folder."""
    if checkpoint.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"{out}: is the checkpoint itself or lies in it; choose another --out")
    if out.resolve() in checkpoint.resolve().parents:
        raise UserError(f"{out}: holds the checkpoint; choose another --out")


def _write(
    opened: Checkpoint,
    known: Architecture | None,
    chosen: Recipe,
    folder: Path,
    text: Path | None,
    progress: Callable[[str], None],
) -> tuple[Model, dict[str, int], Callable[[], Sources], dict[str, Any] | None]:
    """Write the graph; the model, stored bytes by precision, what makes its sources anew, calibration."""
    producer = f"toolchain {version('toolchain') or ''}".strip()
    if known is None:
        arch, stored = fallback.trace(opened, chosen, folder, producer, progress)
        onnx.checker.check_model(str(folder / GRAPH))
        return arch, stored, lambda: Source, None
    ids, calibration = calibration_ids(opened, known, chosen, text, progress)
    progress(f"writing the graph, {chosen.name}")

    def sources() -> Sources:
        return Source if ids is None else calibrated(opened, known, chosen, ids)

    return known, write_graph(opened, known, chosen, folder, producer, sources()), sources, calibration


def kind_of(checkpoint: Path) -> str:
    """Whether a checkpoint is a `decoder` or a `classifier`; UserError for one that cannot be read."""
    opened = open_checkpoint(checkpoint)
    if fallback.is_needed(opened.config):
        return "classifier" if is_classifier(opened.config) else "decoder"
    return check(opened).kind


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
    if manifest["calibration"] and manifest["calibration"]["on"] == "nothing":
        lines.append("not calibrated: weights were rounded to nearest; --calibrate TEXT makes them better")
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
