"""What can be evaluated: an artifact or a checkpoint, described alike and asked for logits alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import read_record

if TYPE_CHECKING:
    import numpy as np

    from toolchain.glue.tasks import Row


@dataclass(frozen=True)
class Subject:
    """What is evaluated: its description for the result, and how to get logits out of it."""

    path: Path
    about: dict[str, Any]  # the result's `subject`
    logits: "Callable[[], Callable[[np.ndarray], np.ndarray]]"  # ids [b, w] -> [b, w, vocab], once loaded
    classify: "Callable[[list[Row]], np.ndarray]"  # rows -> logits [rows, labels]


def open_subject(path: Path) -> Subject:
    """An artifact where there is a manifest, else a checkpoint; UserError where there is neither."""
    if (path / "manifest.json").exists():
        return _artifact(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: neither a checkpoint (config.json) nor an artifact (manifest.json) is there"
        )
    return _checkpoint(path)


def _artifact(path: Path) -> Subject:
    from bench.result import subject
    from devices.artifact import open_artifact
    from devices.machine import physical_cores
    from devices.runtime import Classifier, Decoder

    opened = open_artifact(path)
    cores = physical_cores()  # the runtime's default is for a token at a time, and these are whole windows
    return Subject(
        path,
        subject(opened, path),
        logits=lambda: Decoder(opened, cores).logits,
        classify=lambda rows: Classifier(opened, cores).predict([(row.text_a, row.text_b) for row in rows]),
    )


def _checkpoint(path: Path) -> Subject:
    """A checkpoint under the same keys as an artifact, so that a report joins the two."""
    from export.architecture import check, describe_model
    from export.build import describe_task
    from export.checkpoint import identity, open_checkpoint

    opened = open_checkpoint(path)
    arch = check(opened)
    hash_, name = identity(path), path.resolve().name
    model = describe_model(arch)
    lineage = {key: read_record(path / f"{key}.json") for key in ("compression", "training", "glue")}
    glue = lineage["glue"]
    task = describe_task(arch, opened.config, glue) if glue else None
    about = {
        "type": "checkpoint",
        "name": name,
        "path": str(path),
        "sha256": hash_,
        "kind": arch.kind,
        "recipe": None,
        "parameters": model["parameters"],
        "layers": arch.layers,
        "file_bytes": sum(file.stat().st_size for file in {info.file for info in opened.tensors.values()}),
        "model": model,
        "lineage": {"checkpoint": {"name": name, "sha256": hash_}, **lineage},
        "task": task,
        "parity": None,
    }
    max_tokens = (glue or {}).get("max_tokens") or arch.positions
    return Subject(
        path,
        about,
        logits=lambda: _torch_logits(path),
        classify=lambda rows: _torch_classify(path, rows, min(max_tokens, arch.positions)),
    )


def _torch_logits(path: Path) -> "Callable[[np.ndarray], np.ndarray]":
    import torch
    from transformers import AutoModelForCausalLM

    from toolchain.quiet import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def logits(ids: "np.ndarray") -> "np.ndarray":
        with torch.inference_mode():
            return model(torch.from_numpy(ids).to(model.device), use_cache=False).logits.float().cpu().numpy()

    return logits


def _torch_classify(path: Path, rows: "list[Row]", max_tokens: int) -> "np.ndarray":
    from toolchain.glue import classifier

    return classifier.predict(classifier.load(path), classifier.encode(path, rows, max_tokens))
