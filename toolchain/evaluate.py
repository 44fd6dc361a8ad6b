"""How good a model is: perplexity on a text and a labelled task's metric, for checkpoint and artifact alike.

Both kinds see the same token ids in the same windows, by the same functions; only who computes the logits
differs: PyTorch in float32, or ONNX Runtime through the code that ships.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError
from devices.files import refuse_unwritable, sha256, write_json
from toolchain.subject import Subject, open_subject

if TYPE_CHECKING:
    import numpy as np

    from toolchain.glue.tasks import Task

SCHEMA = 1
LOGITS_AT_ONCE = 1 << 26  # float32 values, 256 MB: how many windows go through the model together
BATCH = 8  # windows, at most


def evaluate(
    subject: Path,
    *,
    corpus: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    blocks: int | None = None,
    task: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint's or an artifact's quality, write the result below `out` if given, and return it.

    A decoder's perplexity is taken on `corpus` (a text file read whole, or "stdlib": its held-out part;
    the default) in the first `blocks` windows of `window` tokens (all of them; 512 or the model's positions),
    side by side or `stride` tokens apart (bench/quality.py: `sliding`), beside it word perplexity and bits per
    byte, which do not depend on the tokenizer.
    A classifier's metrics are taken on the dev rows of `task` (the one it was made for), found below `data`.

    Raises:
        UserError: nothing there that can be evaluated, a text shorter than one window, a task that is not
            the classifier's, a corpus for a classifier or a task for a decoder.
    """
    found = open_subject(Path(subject))
    about = found.about
    if out is not None:
        refuse_unwritable(out)
    if about["kind"] == "decoder":
        _refuse(found, "--task", task, "a decoder; fine-tune it first with `toolchain glue`")
        perplexity = _perplexity(found, corpus or "stdlib", window, stride, blocks)
        quality = {"perplexity": perplexity, "task": None}
    else:
        _refuse(found, "--stride", stride, "a classifier, and perplexity is for decoders")
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
        apart = f"by{found['stride']}" if found["stride"] else ""
        what = f"{found['corpus']['name']}-{found['window']}{apart}x{found['blocks']}"
    return re.sub(r"[^\w.-]", "_", f"{about['name']}-{about['sha256'][:8]}--evaluate--{what}") + ".json"


def _perplexity(
    found: Subject, corpus: str, window: int | None, stride: int | None, blocks: int | None
) -> dict[str, Any]:
    """The result's `perplexity`, from all of the corpus's text as one stream of ids."""
    from bench import quality
    from devices.progress import Progress
    from devices.text import read_text
    from toolchain.corpus import heldout_file

    window = _window(found, window)
    file = heldout_file(corpus)
    text = read_text(file)
    ids, ends = _tokens(found, text)
    plain = quality.windows(ids, window, blocks)
    cut = quality.sliding(ids, window, stride, blocks) if stride else []
    seen = plain.size if not stride else (len(cut) - 1) * stride + len(cut[-1][0])
    compute = found.logits()
    with Progress(len(cut or plain), f"perplexity of {found.about['name']}", "window") as bar:

        def logits(block: "np.ndarray") -> "np.ndarray":
            bar.update(len(block))
            return compute(block)

        batch = max(1, min(BATCH, LOGITS_AT_ONCE // (window * found.about["model"]["vocab"])))
        sliding = quality.sliding_perplexity
        value = sliding(logits, cut, batch) if stride else quality.perplexity(logits, plain, batch)
    return {
        **value,
        "stride": stride,
        **quality.per_word(value["value"], seen, text[: ends(seen)]),
        "corpus": {"name": corpus if corpus == "stdlib" else file.name, "sha256": sha256(file)},
    }


def _window(found: Subject, window: int | None) -> int:
    """Tokens a window: those asked for, or the default; UserError where the model has fewer positions."""
    from bench.quality import default_window

    positions = found.about["model"]["positions"]
    window = window or default_window(positions)
    if window > positions:
        raise UserError(f"{found.path}: has {positions} positions, {window} do not fit; lower --window")
    return window


def _tokens(found: Subject, text: str) -> tuple[list[int], Callable[[int], int | None]]:
    """The ids of `text`, and a function from a count of them to the characters they cover (None: all)."""
    from devices.text import load_tokenizer

    encoded = load_tokenizer(found.path).encode(text, add_special_tokens=False)
    ids, vocab = encoded.ids, found.about["model"]["vocab"]
    if max(ids, default=0) >= vocab:
        raise UserError(f"{found.path}: tokenizer.json gives id {max(ids)}, the model knows {vocab} tokens")
    return ids, lambda count: (encoded.token_to_chars(count - 1) or (0, None))[1]


def find_task(found: Subject, name: str | None, data: Path | None) -> "Task":
    """The task called `name` below `data`, or the one the classifier was made for; UserError if it is not its."""
    from toolchain.glue.tasks import load_task

    made_for = found.about["task"] or {}
    if name is None and not made_for.get("name"):
        raise UserError(f"{found.path}: does not say which task it was made for; name it with --task")
    task = load_task(name or made_for["name"], data)
    _check_labels(found, task, made_for)
    return task


def _task(found: Subject, name: str | None, data: Path | None) -> dict[str, Any]:
    """The result's `task`: its metric over all dev rows, and all of its metrics, that one first."""
    from toolchain.glue.metrics import decide, scores

    task = find_task(found, name, data)
    rows = task.rows("dev")
    logits = found.classify(rows)
    columns = len(task.labels or ("score",))
    if logits.shape[1] != columns:
        raise UserError(
            f"{found.path}: gives {logits.shape[1]} scores a row, task {task.name} needs {columns}"
        )
    values = scores(task.metrics, decide(task.problem, logits), [row.label for row in rows])
    headline = {"metric": task.metric, "value": values[task.metric]}
    return {"name": task.name, **headline, "metrics": values, "rows": len(rows)}


def _check_labels(found: Subject, task: "Task", made_for: dict[str, Any]) -> None:
    """A classifier's answers mean something only for the labels it was trained on, in their order."""
    labels = list(task.labels) if task.labels else None
    if made_for and made_for.get("labels") != labels:
        raise UserError(
            f"{found.path}: was made for task {made_for.get('name')} with labels {made_for.get('labels')}, "
            f"task {task.name} has {labels}; name the task it was made for"
        )
