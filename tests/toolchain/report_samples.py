"""Made-up results as the commands write them, for tests of the report."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

TEACHER, CORPUS = "demo-teacher", {"name": "stdlib held-out", "sha256": "c" * 64}
SPEED = {"fp32": 1.0, "int8": 0.52, "int4": 0.47}
STUDENTS = {  # name: (compression's init, train, held-out perplexity of fp32)
    "demo-teacher": (None, None, 21.4),
    "cut": ("truncate", "none", 214.0),
    "healed": ("truncate", "pretrain", 37.9),
    "distilled": ("truncate", "distill", 34.6),
    "from-nothing": ("random", "pretrain", 128.0),
}


def sha(text: str) -> str:
    """A stand-in for a hash: 64 hex digits that depend on `text` alone."""
    return hashlib.sha256(text.encode()).hexdigest()


def spread(rng: random.Random, median: float, n: int = 60) -> dict[str, Any]:
    """Samples around a median with a tail to the slow side, as a busy machine gives them."""
    samples = sorted(median * (1 + abs(rng.gauss(0, 0.06)) - 0.03) for _ in range(n))
    return {"median": samples[n // 2], "p95": samples[int(n * 0.95)], "p99": samples[-1], "samples": samples}


def compression(name: str) -> dict[str, Any] | None:
    """compression.json of a student, None for the teacher."""
    init, train, perplexity = STUDENTS[name]
    if init is None:
        return None
    record = {
        "objective": "logits" if train == "distill" else "lm",
        "corpus": {"name": "stdlib", "sha256": "d" * 64, "documents": 5120, "tokens": 512_000},
        "tokens": 150_000,
        "steps": 146,
        "hours": 0.061,
        "tokens_per_second": 683.2,
        "seed": 0,
        "lr": 0.0005,
        "perplexity": {"before": 214.0, "after": perplexity, "tokens": 16320, "window": 256},
        "losses": [4.1, 3.6],
    }
    return {
        "schema": 1,
        "command": f"toolchain compress teacher --layers 6 --train {train} --tokens 150000 --out {name}",
        "teacher": {"name": TEACHER, "sha256": sha(TEACHER), "layers": 12, "parameters": 7_400_000},
        "student": {"name": name, "layers": 6, "parameters": 5_030_000, "sha256": sha(name)},
        "init": init,
        "select": "pseudo-uniform",
        "keep": [0, 2, 4, 7, 9, 11],
        "train": train,
        "objective": None if train == "none" else record["objective"],
        "training": None if train == "none" else record,
        "config": {},
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "created": "2026-11-23T10:00:00Z",
    }


def result(kind: str, subject: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A result file's content with everything that all of them share."""
    environment = {
        "cpu": "Intel(R) Xeon(R) CPU @ 2.60GHz",
        "arch": "x86_64",
        "isa": ["avx2", "fma"],
        "cores": 2,
        "threads": 2,
        "memory": 25_000_000_000,
        "governor": None,
        "python": "3.11.2",
        "onnxruntime": "1.32.0",
        "emulated": False,
    }
    base = {"schema": 1, "kind": kind, "created": "2026-11-23T11:00:00Z", "subject": subject}
    return {**base, "device": {"name": "local", "emulated": False}, "environment": environment, **fields}


def decoder(name: str, recipe: str, **changes: Any) -> dict[str, Any]:
    """A bench result of one language model's artifact."""
    rng = random.Random(f"{name} {recipe}")
    layers, how = (12, None) if name == TEACHER else (6, compression(name))
    cost = SPEED[recipe] * (0.35 + 0.65 * layers / 12)
    size = int({"fp32": 4.0, "int8": 1.06, "int4": 0.72}[recipe] * (7_400_000 if layers == 12 else 5_030_000))
    subject = {
        "type": "artifact",
        "name": f"{name}-{recipe}",
        "path": f"artifacts/{name}-{recipe}",
        "sha256": sha(f"{name} {recipe}"),
        "kind": "decoder",
        "recipe": recipe,
        "parameters": 7_400_000 if layers == 12 else 5_030_000,
        "layers": layers,
        "file_bytes": size,
        "model": {"model_type": "gpt2", "layers": layers},
        "lineage": {
            "checkpoint": {"name": name, "sha256": sha(name)},
            "compression": how,
            "training": None,
            "glue": None,
        },
        "task": None,
        "parity": {},
    }
    value = STUDENTS[name][2] * {"fp32": 1.0, "int8": 1.004, "int4": 1.062}[recipe]
    perplexity = {"value": value, "tokens": 16320, "window": 256, "blocks": 64, "corpus": CORPUS}
    fields = {
        "workload": {"name": "chat", "prompt": 128, "generate": 64},
        "rounds": 5,
        "threads": 2,
        "load_s": spread(rng, 0.08 * cost + 0.03, 5),
        "first_token_s": spread(rng, 0.034 * cost, 5),
        "token_s": spread(rng, 0.0042 * cost),
        "peak_rss_bytes": spread(rng, 52e6 + 1.25 * size, 5),
        "file_bytes": size,
        "quality": {"perplexity": perplexity, "task": None},
    }
    return result("bench", subject, **{**fields, **changes})


def checkpoint(name: str) -> dict[str, Any]:
    """An evaluate result of a checkpoint in PyTorch."""
    lineage = {
        "checkpoint": {"name": name, "sha256": sha(name)},
        "compression": compression(name),
        "training": None,
        "glue": None,
    }
    subject = {
        "type": "checkpoint",
        "name": name,
        "path": name,
        "sha256": sha(name),
        "kind": "decoder",
        "lineage": lineage,
    }
    value = {"value": STUDENTS[name][2], "tokens": 16320, "window": 256, "blocks": 64, "corpus": CORPUS}
    return result("evaluate", subject, quality={"perplexity": value, "task": None})


def classifier(base: str, task: str, value: float, floor: float) -> dict[str, Any]:
    """A bench result of one classifier's int8 artifact."""
    made = decoder(base, "int8")
    glue = {
        "schema": 1,
        "base": {"name": base, "sha256": sha(base)},
        "task": task,
        "method": "finetune",
        "metric": "accuracy",
        "value": value + 0.002,
        "epochs": 2,
        "seed": 0,
        "rows": 4000,
        "baseline": floor,
        "compression": compression(base),
        "training": None,
    }
    name = f"{base}-{task}"
    lineage = {
        "checkpoint": {"name": name, "sha256": sha(name)},
        "compression": None,
        "training": None,
        "glue": glue,
    }
    task_info = {
        "name": task,
        "columns": ["text"],
        "labels": ["class", "function"],
        "metric": "accuracy",
        "problem": None,
    }
    made["subject"] |= {
        "name": f"{name}-int8",
        "sha256": sha(f"{name} int8"),
        "kind": "classifier",
        "lineage": lineage,
        "task": task_info,
    }
    measured = {"name": task, "metric": "accuracy", "value": value, "rows": 1000}
    times = {"first_token_s": None, "token_s": None, "sentence_s": spread(random.Random(name), 0.0061)}
    return {
        **made,
        **times,
        "workload": {"name": "classify"},
        "quality": {"perplexity": None, "task": measured},
    }


def write(folder: Path, *results: dict[str, Any]) -> Path:
    """The results as files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, made in enumerate(results):
        (folder / f"{i:02}-{made['subject']['name'].translate({47: 95, 60: 95})}.json").write_text(
            json.dumps(made)
        )
    return folder


def demo(folder: Path) -> Path:
    """What the demo writes: 15 language model artifacts, 5 checkpoints in PyTorch, 4 classifiers."""
    models = [decoder(name, recipe) for name in STUDENTS for recipe in SPEED]
    tasks = [("docs-kind", 0.884, 0.861, 0.79), ("docs-order", 0.803, 0.742, 0.59)]
    labelled = [classifier(TEACHER, task, whole, floor) for task, whole, _, floor in tasks]
    labelled += [classifier("distilled", task, cut, floor) for task, _, cut, floor in tasks]
    return write(folder, *models, *(checkpoint(name) for name in STUDENTS), *labelled)
