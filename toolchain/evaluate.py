"""How good a model is: perplexity on a text and a labelled task's metric, for checkpoint and artifact alike.

Both kinds see the same token ids in the same windows, by the same functions; only who computes the logits
differs: PyTorch in float32, or ONNX Runtime through the code that ships.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import read_json, sha256, write_json

if TYPE_CHECKING:
    import numpy as np

    from toolchain.glue.tasks import Row, Task

SCHEMA = 1
LOGITS_AT_ONCE = 1 << 26  # float32 values, 256 MB: how many windows go through the model together
BATCH = 8  # windows, at most


@dataclass(frozen=True)
class Subject:
    """What is evaluated: its description for the result, and how to get logits out of it."""

    path: Path
    about: dict[str, Any]  # the result's `subject`
    logits: "Callable[[], Callable[[np.ndarray], np.ndarray]]"  # ids [b, w] -> [b, w, vocab], once loaded
    classify: "Callable[[list[Row]], np.ndarray]"  # rows -> logits [rows, labels]


def evaluate(
    subject: Path,
    *,
    corpus: str | None = None,
    window: int | None = None,
    blocks: int | None = None,
    task: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint's or an artifact's quality, write the result below `out` if given, and return it.

    A decoder's perplexity is taken on `corpus` (a text file read whole, or "stdlib": its held-out part;
    the default) in the first `blocks` windows of `window` tokens (all of them; 512 or the model's positions).
    A classifier's metric is taken on the dev rows of `task` (the one it was made for), found below `data`.

    Raises:
        UserError: nothing there that can be evaluated, a text shorter than one window, a task that is not
            the classifier's, a corpus for a classifier or a task for a decoder.
    """
    found = _open(Path(subject))
    about = found.about
    if about["kind"] == "decoder":
        _refuse(found, "--task", task, "a decoder; fine-tune it first with `toolchain glue`")
        quality = {"perplexity": _perplexity(found, corpus or "stdlib", window, blocks), "task": None}
    else:
        _refuse(found, "--corpus", corpus, "a classifier, and perplexity is for decoders")
        quality = {"perplexity": None, "task": _task(found, task, data)}
    from devices.machine import environment

    result = {
        "schema": SCHEMA,
        "kind": "evaluate",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "subject": about,
        "device": {"name": "local", "emulated": False},
        "environment": environment(),
        "quality": quality,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / _file_name(result), result)
    return result


def _refuse(found: Subject, option: str, value: Any, what: str) -> None:
    if value is not None:
        raise UserError(f"{found.path}: is {what}; leave {option} out, or name another model")


def _file_name(result: dict[str, Any]) -> str:
    """NAME-HASH--evaluate--WHAT.json: the same model and text again replace the older result."""
    about, quality = result["subject"], result["quality"]
    if quality["task"]:
        what = quality["task"]["name"]
    else:
        found = quality["perplexity"]
        what = f"{found['corpus']['name']}-{found['window']}x{found['blocks']}"
    return re.sub(r"[^\w.-]", "_", f"{about['name']}-{about['sha256'][:8]}--evaluate--{what}") + ".json"


def _open(path: Path) -> Subject:
    """An artifact where there is a manifest, else a checkpoint; UserError where there is neither."""
    if (path / "manifest.json").exists():
        return _artifact(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: neither a checkpoint (config.json) nor an artifact (manifest.json) is there"
        )
    return _checkpoint(path)


def _artifact(path: Path) -> Subject:
    from devices.artifact import open_artifact
    from devices.runtime import Classifier, Decoder

    opened = open_artifact(path)
    manifest = opened.manifest
    about = {
        "type": "artifact",
        "name": opened.name,
        "path": str(path),
        "sha256": opened.sha256,
        "kind": opened.kind,
        "recipe": manifest["recipe"],
        "parameters": opened.model.get("parameters"),
        "layers": opened.model["layers"],
        "file_bytes": opened.file_bytes,
        "model": opened.model,
        "lineage": manifest.get("lineage"),
        "task": manifest.get("task"),
        "parity": manifest.get("parity"),
    }
    return Subject(
        path,
        about,
        logits=lambda: Decoder(opened).logits,
        classify=lambda rows: Classifier(opened).predict([(row.text_a, row.text_b) for row in rows]),
    )


def _checkpoint(path: Path) -> Subject:
    from export.architecture import check, parameters
    from export.checkpoint import identity, open_checkpoint

    opened = open_checkpoint(path)
    arch = check(opened)
    hash_, name = identity(path), path.resolve().name
    model = {
        "model_type": arch.model_type,
        **{key: getattr(arch, key) for key in ("layers", "hidden", "heads", "kv_heads", "head_dim")},
        **{"vocab": arch.vocab, "positions": arch.positions, "parameters": parameters(arch)},
    }
    lineage = {key: _record(path / f"{key}.json") for key in ("compression", "training", "glue")}
    glue = lineage["glue"]
    keys = ("columns", "labels", "metric", "problem", "max_tokens")
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
        "task": {"name": glue["task"], **{key: glue.get(key) for key in keys}} if glue else None,
        "parity": None,
    }
    max_tokens = (about["task"] or {}).get("max_tokens") or arch.positions
    return Subject(
        path,
        about,
        logits=lambda: _torch_logits(path),
        classify=lambda rows: _torch_classify(path, rows, min(max_tokens, arch.positions)),
    )


def _record(path: Path) -> dict[str, Any] | None:
    return read_json(path, "how the checkpoint was made") if path.is_file() else None


def _torch_logits(path: Path) -> "Callable[[np.ndarray], np.ndarray]":
    import torch
    from transformers import AutoModelForCausalLM

    from toolchain.glue.classifier import quiet

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


def _perplexity(found: Subject, corpus: str, window: int | None, blocks: int | None) -> dict[str, Any]:
    """The result's `perplexity`, from all of the corpus's text as one stream of ids."""
    from tqdm import tqdm

    from bench.quality import default_window, perplexity, windows
    from devices.text import encode_text, load_tokenizer
    from toolchain.corpus import heldout_file

    model = found.about["model"]
    window = window or default_window(model["positions"])
    if window > model["positions"]:
        raise UserError(
            f"{found.path}: has {model['positions']} positions, {window} do not fit; lower --window"
        )
    file = heldout_file(corpus)
    ids = encode_text(load_tokenizer(found.path), _read(file))
    if max(ids, default=0) >= model["vocab"]:
        raise UserError(
            f"{found.path}: tokenizer.json gives id {max(ids)}, the model knows {model['vocab']} tokens"
        )
    cut = windows(ids, window, blocks)
    compute = found.logits()
    with tqdm(total=len(cut), desc="perplexity", unit="window", leave=False, disable=None) as bar:

        def logits(block: "np.ndarray") -> "np.ndarray":
            bar.update(len(block))
            return compute(block)

        batch = max(1, min(BATCH, LOGITS_AT_ONCE // (window * model["vocab"])))
        value = perplexity(logits, cut, batch)
    return {**value, "corpus": {"name": corpus if corpus == "stdlib" else file.name, "sha256": sha256(file)}}


def _read(file: Path) -> str:
    """The whole text, newlines as they are; UserError where it is empty or no UTF-8."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; convert the text to UTF-8") from None
    if not text.strip():
        raise UserError(f"{file}: holds no text; name another --corpus")
    return text


def _task(found: Subject, name: str | None, data: Path | None) -> dict[str, Any]:
    """The result's `task`: the metric over all dev rows."""
    from toolchain.glue.metrics import decide, score
    from toolchain.glue.tasks import load_task

    made_for = found.about["task"] or {}
    if name is None and not made_for.get("name"):
        raise UserError(f"{found.path}: does not say which task it was made for; name it with --task")
    task = load_task(name or made_for["name"], data)
    _check_labels(found, task, made_for)
    rows = task.rows("dev")
    logits = found.classify(rows)
    columns = len(task.labels or ("score",))
    if logits.shape[1] != columns:
        raise UserError(
            f"{found.path}: gives {logits.shape[1]} scores a row, task {task.name} needs {columns}"
        )
    value = score(task.metric, decide(task.problem, logits), [row.label for row in rows])
    return {"name": task.name, "metric": task.metric, "value": value, "rows": len(rows)}


def _check_labels(found: Subject, task: "Task", made_for: dict[str, Any]) -> None:
    """A classifier's answers mean something only for the labels it was trained on, in their order."""
    labels = list(task.labels) if task.labels else None
    if made_for and made_for.get("labels") != labels:
        raise UserError(
            f"{found.path}: was made for task {made_for.get('name')} with labels {made_for.get('labels')}, "
            f"task {task.name} has {labels}; name the task it was made for"
        )
