"""How each model was made, and on what it was measured: the page's cards."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from toolchain.report.lineage import Result, Student
from toolchain.report.units import count, hours, three

ENVIRONMENT_SKIPPED = ("emulated",)


@dataclass(frozen=True)
class Card:
    """One model's origin: its chain from the teacher, layers kept (True) or cut, facts, the command."""

    title: str
    chain: list[str]
    strip: list[bool] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    command: str = ""


def cards(known: dict[str, Student]) -> list[Card]:
    """A card for every model that says something about its making, in the page's order."""
    return [card(s, known) for s in known.values() if s.compression or s.training or s.glue or s.is_teacher]


def card(student: Student, known: dict[str, Student]) -> Card:
    """The card of one model."""
    how, tuned, record = student.compression or {}, student.glue or {}, student.record
    title = f"{student.label}, fine-tuned on {tuned.get('task')}" if tuned else student.label
    facts = _tuning(tuned) if tuned else {**_cutting(how), **_training(record)}
    facts = {"parameters": count(student.parameters), **facts, "identity": student.sha256[:12]}
    own = {} if tuned else how
    return Card(
        title=title,
        chain=chain(student, known),
        strip=strip(own),
        facts={name: value for name, value in facts.items() if value},
        # Of the last step alone: a parent's command would not make this model.
        command=str((tuned or how or student.training or {}).get("command") or ""),
    )


def chain(student: Student, known: dict[str, Student]) -> list[str]:
    """Names from the first ancestor down to the model; an unmeasured one by the name in the record."""
    names, at = [student.name], student
    while at.parent and len(names) < 20:
        source = (at.glue or {}).get("base") or (at.compression or {}).get("teacher") or {}
        names.append(source.get("name") or at.parent[:12])
        if at.parent not in known or at.parent == at.sha256:
            break
        at = known[at.parent]
    return names[::-1]


def strip(how: dict[str, Any]) -> list[bool]:
    """The teacher's layers, True where kept; empty where nothing was cut."""
    whole, keep = (how.get("teacher") or {}).get("layers"), how.get("keep")
    if not isinstance(whole, int) or not keep or how.get("init") == "random" or whole > 500:
        return []
    return [i in set(keep) for i in range(whole)]


def _cutting(how: dict[str, Any]) -> dict[str, str]:
    if not how:
        return {}
    keep = "" if how.get("init") == "random" else ", ".join(str(i) for i in how.get("keep") or [])
    start = "random weights" if how.get("init") == "random" else "the teacher's layers"
    return {
        "starts from": start,
        "chosen by": "" if not keep else "hand" if how.get("select") == "keep" else how.get("select") or "",
        "layers kept": keep,
    }


def _training(record: dict[str, Any]) -> dict[str, str]:
    perplexity, corpus = record.get("perplexity") or {}, record.get("corpus") or {}
    before, after = three(perplexity.get("before")), three(perplexity.get("after"))
    steps, seed = record.get("steps"), record.get("seed")
    return {
        "objective": str(record.get("objective") or ""),
        "corpus": str(corpus.get("name") or ""),
        "tokens seen": count(record.get("tokens")),
        "steps": f"{steps:,}" if isinstance(steps, int) else "",
        "training time": hours(record.get("hours")),
        "speed": f"{three(record['tokens_per_second'])} tokens/s" if record.get("tokens_per_second") else "",
        "learning rate": str(record.get("lr") or ""),
        "seed": "" if seed is None else str(seed),
        "held-out perplexity": f"{before} before, {after} after" if before and after else after,
    }


def _tuning(tuned: dict[str, Any]) -> dict[str, str]:
    names = {"task": "task", "method": "method", "epochs": "epochs", "rows": "rows", "seed": "seed"}
    facts = {title: str(tuned[key]) for key, title in names.items() if tuned.get(key) is not None}
    return {**facts, tuned.get("metric") or "score": three(tuned.get("value"))}


def environments(results: Iterable[Result]) -> dict[str, dict[str, str]]:
    """Per device, what its results recorded about the machine; values that differed are all named."""
    seen: dict[str, dict[str, list[str]]] = {}
    for result in results:
        device = result["device"]
        name = device["name"] + (" (emulated: no times)" if device.get("emulated") else "")
        for key, value in (result.get("environment") or {}).items():
            text = f"{three(value / 1e9)} GB" if key.endswith("_bytes") and value else _text(value)
            if (
                text
                and key not in ENVIRONMENT_SKIPPED
                and text not in seen.setdefault(name, {}).setdefault(key, [])
            ):
                seen[name][key].append(text)
    return {name: {key: _several(texts) for key, texts in facts.items()} for name, facts in seen.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, float):
        return three(value)
    return f"{value:,}" if isinstance(value, int) and value > 99999 else str(value)


def _several(texts: list[str]) -> str:
    """Few different values in full; of many numbers (a load average) the smallest and the largest."""
    if len(texts) <= 3:
        return "; ".join(texts)
    try:
        ordered = sorted(texts, key=lambda t: float(t.replace(",", "")))
    except ValueError:
        return f"{'; '.join(texts[:3])}; and {len(texts) - 3} others"
    return f"{ordered[0]} to {ordered[-1]}"
