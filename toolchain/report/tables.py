"""The tables of the page as plain text cells: the same ones in report.html and report.md."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from toolchain.report.front import front
from toolchain.report.join import Row
from toolchain.report.lineage import Student
from toolchain.report.units import count, mb, ms, three

Setting = tuple[Any, ...]
WARM, COLD = "first token ms", "start to first token ms"
DECODER_COLUMNS = ("weights", "file MB", "perplexity", WARM, "token ms", "token p95", "memory MB")
CLASSIFIER_COLUMNS = ("weights", "file MB", "score", "baseline", "sentence ms", "sentence p95", "memory MB")


@dataclass(frozen=True)
class Group:
    """Rows of a table that share a subject: its name, what is true of all of them, and the cells."""

    head: str
    facts: dict[str, str]
    rows: list[list[str]]
    on_front: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """A titled table; `note` says under which conditions its numbers were measured."""

    title: str
    note: str
    of: str
    columns: tuple[str, ...]
    groups: list[Group]


def settings(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Language models' rows by what makes them comparable: device, workload, threads, and text.

    A checkpoint's row (measured in PyTorch) joins every setting with its text; an artifact without a
    perplexity joins the setting of its device. The setting with the most rows comes first.
    """
    found: dict[Setting, list[Row]] = {}
    decoders = [r for r in rows if r["kind"] == "decoder"]
    artifacts = [r for r in decoders if r["subject"] == "artifact"]
    for row in sorted(artifacts, key=lambda r: r["perplexity"] is None):
        machine, text = _machine(row), _text(row)
        twin = next((key for key in found if key[:3] == machine), None) if row["perplexity"] is None else None
        found.setdefault(twin or (*machine, *text), []).append(row)
    for row in (r for r in decoders if r["subject"] == "checkpoint"):
        homes = [key for key in found if key[3:] == _text(row)] or [(*_machine(row), *_text(row))]
        for key in homes:
            found.setdefault(key, []).append(row)
    place = {id(row): i for i, row in enumerate(decoders)}
    return {
        key: sorted(group, key=lambda r: place[id(r)])
        for key, group in sorted(found.items(), key=lambda item: -len(item[1]))
    }


def _machine(row: Row) -> Setting:
    return row["device"], row["workload"], row["threads"]


def _text(row: Row) -> Setting:
    return row["corpus_sha256"], row["window"], row["stride"], row["blocks"]


def fronts(rows: list[Row], cost: str) -> list[Row]:
    """The artifacts that no other beats in `cost` and perplexity at once, cheapest first."""
    able = [
        r for r in rows if r["subject"] == "artifact" and r[cost] is not None and r["perplexity"] is not None
    ]
    return [able[i] for i in front([(r[cost], r["perplexity"]) for r in able])]


def conditions(rows: list[Row]) -> str:
    """In words: on which device, what was asked of it, and on which text perplexity was measured."""
    row = next((r for r in rows if r["subject"] == "artifact"), rows[0])
    parts = [f"device {row['device']}" + (" (emulated: no times)" if row["emulated"] else "")]
    if row["threads"]:
        parts.append(f"{row['threads']:.0f} thread" + "s" * (row["threads"] != 1))
    if row["workload"]:
        sizes = (
            f" ({row['prompt']:.0f} tokens in, {row['generate']:.0f} out)"
            if row["prompt"] and row["generate"]
            else ""
        )
        parts.append(f"workload {row['workload']}{sizes}")
    if row["rounds"]:
        parts.append(f"{row['rounds']:.0f} rounds")
    text = next((r for r in rows if r["perplexity"] is not None), None)
    if text:
        blocks = (
            f", {text['blocks']:.0f} blocks of {text['window']:.0f} tokens"
            if text["blocks"] and text["window"]
            else ""
        )
        apart = f", {text['stride']:.0f} apart" if text["stride"] else ""
        parts.append(f"perplexity on {text['corpus'] or 'an unnamed text'}{blocks}{apart}")
    return "; ".join(parts)


def headings(found: dict[Setting, list[Row]]) -> list[str]:
    """A heading for each setting's table, which says in what it differs from the others."""
    said = [_setting(rows, key) for key, rows in found.items()]
    differ = [at for at, words in enumerate(zip(*said, strict=True)) if len(set(words)) > 1]
    told = [", ".join(words[at] for at in differ if words[at]) for words in said]
    return [f"Language models: {text}" if text else "Language models" for text in told]


def _setting(rows: list[Row], key: Setting) -> tuple[str, ...]:
    """A setting's parts in words, empty where it has none."""
    device, workload, threads, text, window, stride, blocks = key
    named = next((r["corpus"] for r in rows if r["corpus"]), None)
    return (
        f"device {device}",
        f"workload {workload}" if workload else "not timed",
        f"{threads:.0f} thread{'s' * (threads != 1)}" if threads else "",
        f"text {named or 'unnamed'} ({text[:6]})" if text else "no text",
        f"windows of {window:.0f} tokens" if window else "",
        f"{stride:.0f} tokens apart" if stride else "",
        f"{blocks:.0f} blocks" if blocks else "",
    )


def decoder_table(rows: list[Row], known: dict[str, Student], title: str = "Language models") -> Table:
    """Language models of one setting, a group per student: its PyTorch checkpoint, then its artifacts."""
    best = {id(r) for r in fronts(rows, "token_s_median")}
    cold = any(r["start_s_median"] is not None for r in rows)  # a process of its own for each token
    first = "start_s_median" if cold else "first_token_s_median"
    columns = [COLD if cold and name == WARM else name for name in DECODER_COLUMNS]
    groups = []
    for sha in dict.fromkeys(r["checkpoint_sha256"] for r in rows):
        mine = [r for r in rows if r["checkpoint_sha256"] == sha]
        cells = [
            [
                "PyTorch" if r["subject"] == "checkpoint" else r["recipe"] or "",
                "" if r["subject"] == "checkpoint" else mb(r["file_bytes"]),
                three(r["perplexity"]),
                ms(r[first]),
                ms(r["token_s_median"]),
                ms(r["token_s_p95"]),
                mb(r["peak_rss_bytes_median"]),
            ]
            for r in mine
        ]
        facts = {"layers": layers(known[sha]), "parameters": count(known[sha].parameters)}
        marked = tuple(i for i, r in enumerate(mine) if id(r) in best)
        groups.append(Group(known[sha].label, facts, cells, marked))
    return Table(title, conditions(rows), "model", tuple(columns), groups)


def layers(student: Student) -> str:
    """Layers kept, and of how many: "6 of 12"."""
    if not student.layers:
        return ""
    whole = ((student.compression or {}).get("teacher") or {}).get("layers")
    cut = (student.compression or {}).get("init") != "random"
    return f"{student.layers} of {whole}" if whole and cut else f"{student.layers}"


def classifier_table(rows: Iterable[Row], known: dict[str, Student]) -> Table | None:
    """Classifiers, a group per task and model, its score beside the task's baseline; None without any."""
    mine = [r for r in rows if r["kind"] == "classifier"]
    if not mine:
        return None
    measured = [r for r in mine if r["subject"] == "artifact"] or mine
    devices = {r["device"] for r in measured}
    groups = []
    for task in dict.fromkeys(r["task"] for r in mine):
        for sha in dict.fromkeys(r["checkpoint_sha256"] for r in mine if r["task"] == task):
            own = [r for r in mine if r["task"] == task and r["checkpoint_sha256"] == sha]
            head = f"{task or 'unnamed task'}: {known[sha].label}"
            groups.append(Group(head, _task_facts(own), [_task_cells(r, len(devices) > 1) for r in own]))
    note = conditions(measured) + "; baseline: a bag of n-grams under a linear classifier, on the same rows"
    return Table("Classifiers", note, "task: model", CLASSIFIER_COLUMNS, groups)


def _task_facts(rows: list[Row]) -> dict[str, str]:
    metric = next((r["metric"] for r in rows if r["metric"]), "")
    size = next((r["task_rows"] for r in rows if r["task_rows"]), None)
    return {"metric": metric, "rows": f"{size:,.0f}" if size else ""}


def _task_cells(r: Row, name_device: bool) -> list[str]:
    torch = r["subject"] == "checkpoint"
    return [
        "PyTorch" if torch else (r["recipe"] or "") + (f" on {r['device']}" if name_device else ""),
        "" if torch else mb(r["file_bytes"]),
        three(r["task_value"]),
        three(r["baseline"]),
        ms(r["sentence_s_median"]),
        ms(r["sentence_s_p95"]),
        mb(r["peak_rss_bytes_median"]),
    ]
