"""Results as flat rows, one per subject x device x workload, in an order to read them in."""

from collections.abc import Iterable, Mapping
from typing import Any

from toolchain.report.lineage import Result, Student, identity

Row = dict[str, Any]
TIMES = ("load_s", "start_s", "first_token_s", "token_s", "sentence_s")
SPREADS = (*TIMES, "peak_rss_bytes")

# One row per subject x device x workload, in this order in results.csv.
COLUMNS = (
    *("student", "subject", "name", "kind", "recipe", "layers", "parameters", "file_bytes"),
    *("device", "emulated", "workload", "prompt", "generate", "threads", "rounds"),
    *(f"{name}_{part}" for name in SPREADS for part in ("p25", "median", "p75", "p95", "p99")),
    *("perplexity", "perplexity_tokens", "window", "stride", "blocks", "corpus", "corpus_sha256"),
    *("word_perplexity", "bits_per_byte"),
    *("task", "metric", "task_value", "task_rows", "baseline"),
    *("train", "objective", "train_tokens", "train_hours", "seed"),
    *("checkpoint_sha256", "teacher_sha256", "sha256", "created"),
)


PERPLEXITY = (
    *("perplexity", "perplexity_tokens", "window", "stride", "blocks", "corpus", "corpus_sha256"),
    *("word_perplexity", "bits_per_byte"),
)
TASK = ("task_value", "task", "metric", "task_rows", "baseline")
SETTINGS = ("device", "workload", "threads", "corpus_sha256", "window", "stride", "blocks", "task")


def rows(
    results: Iterable[Result], known: dict[str, Student], baselines: Mapping[str, float] | None = None
) -> list[Row]:
    """One flat row (keys: COLUMNS) per subject x device x workload, students in the order of `known`.

    `baselines` are the labelled tasks' by name, for rows whose lineage does not carry one.

    Of two results with the same subject and settings the newer stands. An artifact's evaluate result fills
    the quality its bench results on the same device lack; it stands alone where it says something else.
    """
    newest: dict[tuple[Any, ...], Row] = {}
    for result in sorted(results, key=lambda r: r.get("created") or ""):
        made = row(result, known[identity(result)])
        if made["baseline"] is None:
            made["baseline"] = (baselines or {}).get(made["task"])
        newest[(result["kind"], made["sha256"], *(made[key] for key in SETTINGS))] = made
    merged = _merge_quality((key[0], row) for key, row in newest.items())
    place = {sha: i for i, sha in enumerate(known)}
    recipes = {"fp32": 0, "int8": 1, "int4": 2}

    def order(r: Row) -> tuple[Any, ...]:
        kind = r["subject"] != "checkpoint", recipes.get(r["recipe"], 9), r["recipe"] or ""
        return r["device"], r["workload"] or "", place[r["checkpoint_sha256"]], *kind

    return sorted(merged, key=order)


def _merge_quality(found: Iterable[tuple[str, Row]]) -> list[Row]:
    """Bench rows filled from evaluate rows of the same artifact and device, then the evaluate rows left."""
    found = list(found)
    merged = [row for kind, row in found if kind == "bench"]
    for row in (row for kind, row in found if kind == "evaluate"):
        told = False
        for twin in (r for r in merged if (r["sha256"], r["device"]) == (row["sha256"], row["device"])):
            for keys in (PERPLEXITY, TASK):
                if twin[keys[0]] is None and row[keys[0]] is not None:
                    twin.update({key: row[key] for key in keys})
            said = [key for key in SETTINGS[3:] if row[key] is not None or key == "stride"]
            told = told or all(twin[key] == row[key] for key in said)
        if not told:
            merged.append(row)
    return merged


def row(result: Result, student: Student) -> Row:
    """One result as a flat row; seconds, bytes and counts as measured, None where nothing was.

    Times on an emulated device are the emulator's, not the device's: they are left out.
    """
    subject, quality = result["subject"], result.get("quality") or {}
    workload, perplexity, task = (
        x or {} for x in (result.get("workload"), quality.get("perplexity"), quality.get("task"))
    )
    recipe = subject.get("recipe")
    emulated = bool(result["device"].get("emulated"))
    how, record = student.compression or {}, student.record
    return {
        **dict.fromkeys(COLUMNS),
        "student": student.label,
        "subject": subject["type"],
        "name": subject["name"],
        "kind": subject.get("kind") or student.kind,
        "recipe": recipe.get("name") if isinstance(recipe, dict) else recipe,
        "layers": student.layers,
        "parameters": student.parameters,
        "file_bytes": result.get("file_bytes") or subject.get("file_bytes"),
        "device": result["device"]["name"],
        "emulated": emulated,
        "workload": workload.get("name"),
        "prompt": workload.get("prompt"),
        "generate": workload.get("generate"),
        "threads": result.get("threads"),
        "rounds": result.get("rounds"),
        **{
            key: value
            for name in SPREADS
            if not emulated
            for key, value in _spread(name, result.get(name)).items()
        },
        "perplexity": perplexity.get("value"),
        "perplexity_tokens": perplexity.get("tokens"),
        "window": perplexity.get("window"),
        "stride": perplexity.get("stride"),
        "blocks": perplexity.get("blocks"),
        "word_perplexity": perplexity.get("word_perplexity"),
        "bits_per_byte": perplexity.get("bits_per_byte"),
        "corpus": (perplexity.get("corpus") or {}).get("name"),
        "corpus_sha256": (perplexity.get("corpus") or {}).get("sha256"),
        "task": task.get("name") or (student.glue or {}).get("task"),
        "metric": task.get("metric"),
        "task_value": task.get("value"),
        "task_rows": task.get("rows"),
        "baseline": baseline(result, student),
        "train": how.get("train"),
        "objective": how.get("objective"),
        "train_tokens": record.get("tokens"),
        "train_hours": record.get("hours"),
        "seed": how.get("seed"),
        "checkpoint_sha256": student.sha256,
        "teacher_sha256": student.parent,
        "sha256": subject["sha256"],
        "created": result.get("created"),
    }


def baseline(result: Result, student: Student) -> float | None:
    """The task's n-gram baseline, wherever along the lineage it was written down."""
    task = (result.get("quality") or {}).get("task")
    for holder in (task, result["subject"].get("task"), student.glue):
        value = holder.get("baseline") if isinstance(holder, dict) else None
        value = value.get("value") if isinstance(value, dict) else value
        if isinstance(value, int | float):
            return value
    return None


def _spread(name: str, found: dict[str, Any] | None) -> Row:
    import numpy as np

    found = found or {}
    samples = found.get("samples") or []
    quartiles = np.percentile(samples, [25, 75]).tolist() if samples else [None, None]
    parts = {part: found.get(part) for part in ("median", "p95", "p99")} | dict(
        zip(("p25", "p75"), quartiles, strict=True)
    )
    return {f"{name}_{part}": value for part, value in parts.items()}
