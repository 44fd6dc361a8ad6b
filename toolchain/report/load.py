"""Reading result files: what bench and evaluate wrote, checked before anything is drawn."""

import json
import textwrap
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json

SCHEMA = 1
TEXT = {"type": "string"}
TEXT_OR_NULL = {"type": ["string", "null"]}
NUMBER = {"type": ["number", "null"]}
SIZE = {"type": ["number", "null"], "minimum": 0}


def _object(required: tuple[str, ...] = (), null: bool = True, **properties: Any) -> dict[str, Any]:
    """JSON schema of an object (or null) with the given properties; others are let through."""
    kinds = ["object", "null"] if null else ["object"]
    return {"type": kinds, "required": list(required), "properties": properties}


IDENTITY = _object(("sha256",), name=TEXT_OR_NULL, sha256=TEXT)
SPREAD = _object(
    median=SIZE,
    p95=SIZE,
    p99=SIZE,
    samples={"type": ["array", "null"], "items": {"type": "number", "minimum": 0}},
)
TRAINING = _object(
    tokens=SIZE, hours=SIZE, perplexity=_object(before=SIZE, after=SIZE), corpus=_object(name=TEXT_OR_NULL)
)
PRETRAINING = _object(training=TRAINING, command=TEXT_OR_NULL)
COMPRESSION = _object(
    teacher=IDENTITY,
    keep={"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}},
    init=TEXT_OR_NULL,
    select=TEXT_OR_NULL,
    train=TEXT_OR_NULL,
    objective=TEXT_OR_NULL,
    command=TEXT_OR_NULL,
    training=TRAINING,
)
GLUE = _object(base=IDENTITY, task=TEXT_OR_NULL, method=TEXT_OR_NULL, value=NUMBER, compression=COMPRESSION)
SUBJECT = _object(
    ("type", "name", "sha256"),
    null=False,
    type={"enum": ["artifact", "checkpoint"]},
    name=TEXT,
    sha256=TEXT,
    kind={"enum": ["decoder", "classifier", None]},
    recipe={"type": ["string", "object", "null"]},
    parameters=SIZE,
    layers=SIZE,
    file_bytes=SIZE,
    model=_object(),
    lineage=_object(checkpoint=IDENTITY, compression=COMPRESSION, training=PRETRAINING, glue=GLUE),
)
PERPLEXITY = _object(
    ("value",),
    value={"type": ["number", "null"], "exclusiveMinimum": 0},
    tokens=SIZE,
    window=SIZE,
    stride=SIZE,
    blocks=SIZE,
    word_perplexity=NUMBER,
    bits_per_byte=NUMBER,
    corpus=_object(name=TEXT_OR_NULL, sha256=TEXT_OR_NULL),
)
RESULT = _object(
    ("schema", "kind", "subject", "device"),
    null=False,
    schema={"const": SCHEMA},
    kind={"enum": ["bench", "evaluate"]},
    subject=SUBJECT,
    device=_object(("name",), null=False, name=TEXT, emulated={"type": ["boolean", "null"]}),
    workload=_object(name=TEXT, prompt=NUMBER, generate=NUMBER),
    environment=_object(),
    rounds=SIZE,
    threads=SIZE,
    file_bytes=SIZE,
    created=TEXT_OR_NULL,
    quality=_object(
        perplexity=PERPLEXITY,
        task=_object(("name",), name=TEXT, metric=TEXT_OR_NULL, value=NUMBER, rows=SIZE),
    ),
    **dict.fromkeys(
        ("load_s", "start_s", "first_token_s", "token_s", "sentence_s", "peak_rss_bytes"), SPREAD
    ),
)

# What a labelled task is worth without a model: {"kind": "baseline", "task": "docs-kind", "value": 0.79, ...}
BASELINE = _object(
    ("schema", "kind", "task", "value"),
    null=False,
    schema={"const": SCHEMA},
    task=TEXT,
    metric=TEXT_OR_NULL,
    value={"type": "number"},
    rows=SIZE,
)


def load(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every result below `folder` by path, and the labelled tasks' baselines; UserError naming a bad file."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; name the one that bench --out and evaluate --out wrote to"
        )
    files = [p for p in sorted(folder.rglob("*.json")) if not _hidden(p.relative_to(folder))]
    found = [read_result(path) for path in files]
    results = [result for result in found if result["kind"] != "baseline"]
    if not results:
        raise UserError(
            f"{folder}: holds no results; write some with toolchain bench ARTIFACT --out {folder}"
        )
    return results, [result for result in found if result["kind"] == "baseline"]


def _hidden(path: Path) -> bool:
    """Files being written and what other programs keep: no results."""
    return any(part.startswith(".") for part in path.parts)


def read_result(path: Path) -> dict[str, Any]:
    """The result in one file, held against the schema; UserError naming the file and the place in it."""
    import jsonschema

    result = read_json(path, "a result of bench or evaluate")
    schema = result.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"{path}: written by a newer toolchain (schema {schema}, this one reads {SCHEMA}); update it"
        )
    try:
        json.dumps(result, allow_nan=False)
    except ValueError:
        raise UserError(
            f"{path}: holds a number that is not finite; measure again or move the file away"
        ) from None
    form = BASELINE if result.get("kind") == "baseline" else RESULT
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(form).iter_errors(result))
    if error is not None:
        what = textwrap.shorten(f"at {error.json_path}: {error.message}", 160, placeholder=" …")
        raise UserError(
            f"{path}: no result of bench or evaluate ({what}); measure again or move the file away"
        )
    return result
