"""docs/peers.md, its picture and the raw figures, from a record of all rounds."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import summary
from chart import picture
from measure import Job, Sample
from summary import Rounds, Spread

TITLES = {
    "generate": "Generation",
    "full": "All 1024 positions filled",
    "classify": "Classification",
    "export": "Export",
}
# workload -> columns: heading, measure, factor to what is shown, digits after the point
Column = tuple[str, str, float]
PICTURE = ["![tokens per second, first token and peak memory of each](peers.png)", ""]
Record = dict[str, Any]
COLUMNS: dict[str, tuple[Column, ...]] = {
    "generate": (
        ("file MB", "file", 1e-6),
        ("load s", "load", 1),
        ("first token ms", "first token", 1e3),
        ("tokens/s", "tokens/s", 1),
        ("peak MB", "peak", 1e-6),
        ("of it anonymous", "anonymous", 1e-6),
    ),
    "full": (
        ("first token ms", "first token", 1e3),
        ("tokens/s", "tokens/s", 1),
        ("peak MB", "peak", 1e-6),
        ("of it anonymous", "anonymous", 1e-6),
    ),
    "classify": (("file MB", "file", 1e-6), ("sentences/s", "sentences/s", 1), ("peak MB", "peak", 1e-6)),
    "export": (("seconds", "seconds", 1), ("peak MB", "peak", 1e-6)),
}


def write(docs: Path, record: Record, jobs: Sequence[Job]) -> list[Path]:
    """Write all three below `docs`; their paths."""
    figures, text, drawing = docs / "results" / "peers.json", docs / "peers.md", docs / "peers.png"
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps(_slim(record), separators=(",", ":")) + "\n", encoding="utf-8")
    text.write_text("\n".join(page(record, jobs)) + "\n", encoding="utf-8")
    drawn = picture(record["rounds"], jobs)
    if drawn is None:
        return [figures, text]
    drawing.write_bytes(drawn)
    return [figures, text, drawing]


def page(record: Record, jobs: Sequence[Job]) -> list[str]:
    """The lines of peers.md."""
    lines = [
        "# Peers",
        "",
        *_conditions(record),
        "",
        *PICTURE[: 2 * any(j.workload.name == "generate" for j in jobs)],
        "## Against the goals",
        "",
        *_goals(record, jobs),
    ]
    for workload in dict.fromkeys(j.workload.name for j in jobs):
        for model in dict.fromkeys(j.model for j in jobs if j.workload.name == workload):
            mine = [j for j in jobs if j.workload.name == workload and j.model == model]
            lines += ["", f"## {TITLES[workload]}: {model.name}", ""]
            lines += [f"{model.what}; {mine[0].workload.what}.", ""]
            lines += _table(record, mine)
            lines += _ratios(record["rounds"], mine)
    return [
        *lines,
        "",
        "## What each was given",
        "",
        *NOTES,
        "",
        *_settings(record, jobs),
        "",
        *_versions(record),
    ]


def _conditions(record: Record) -> list[str]:
    """When, where and how, in a few sentences."""
    machine, count = record["machine"], len(record["rounds"])
    samples = [s for found in record["rounds"] for s in found.values()]
    others = [s["others"] for s in samples if "others" in s]
    busy = f"; others used {statistics.median(others):.0%} of the cores meanwhile (median)" if others else ""
    memory = f"{(machine['memory_bytes'] or 0) / 2**30:.0f} GiB"
    lines = [
        f"Written by `make peers` on {record['date']}: {count} round{'s' if count != 1 else ''}, all in turn within "
        "each, a fresh process per measurement. Figures are medians (lowest–highest); ratios are taken pair by pair "
        "within a round, then their median. MB are 10^6 bytes; peak memory is the kernel's high-water mark.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['isa'] or [])}, {memory}, "
        f"{machine['os']}; load when it began {(machine['load'] or ['unknown'])[0]}{busy}.",
    ]
    return lines + [f"Left out: {reason}." for reason in record["left_out"]]


def _goals(record: Record, jobs: Sequence[Job]) -> list[str]:
    lines = ["| | threads | ours | against | ratio | goal | held |", "|---|---|---|---|---|---|---|"]
    for one in summary.outcomes(record["rounds"], jobs, record["parameters"]):
        sign = "≥" if one.more else "≤"
        goal = f"{sign} {one.limit:g}" if one.limit is not None else "shown"
        held = {True: "yes", False: "**no**", None: ""}[one.held]
        threads = one.threads or ""
        lines.append(
            f"| {one.title} | {threads} | {one.ours} | {one.theirs} | {_cell(one.ratio)} | {goal} | {held} |"
        )
    return lines


def _table(record: Record, jobs: Sequence[Job]) -> list[str]:
    """A row per variant; figures for each thread count one after the other, separated by a stroke."""
    rounds, columns = record["rounds"], COLUMNS[jobs[0].workload.name]
    counts = list(dict.fromkeys(j.threads for j in jobs))
    agree = jobs[0].workload.name == "generate"
    heads = [name + _per(counts, measure) for name, measure, _ in columns]
    heads += ["first 16 tokens as PyTorch fp32"] if agree else []
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for variant in dict.fromkeys(j.variant.name for j in jobs):
        mine = [j for j in jobs if j.variant.name == variant]
        reason = summary.failure(rounds, mine[0].key)
        if reason is not None:
            lines.append(f"| {variant} | failed: {reason} |" + " |" * (len(heads) - 1))
            continue
        cells = []
        for _, measure, factor in columns:
            chosen = mine if measure in PER_THREADS else mine[:1]
            cells.append(" · ".join(_cell(summary.of(rounds, j.key, measure), factor) for j in chosen))
        if agree:
            tokens = record["torch_tokens"].get(mine[0].model.name)
            cells.append(summary.agreement(rounds, mine[0].key, tokens))
        bold = "**" if variant.startswith("ours ") else ""
        lines.append(f"| {bold}{variant}{bold} | {' | '.join(cells)} |")
    return lines


PER_THREADS = ("first token", "tokens/s", "sentences/s")


def _per(counts: Sequence[int | None], measure: str) -> str:
    if measure not in PER_THREADS or len(counts) < 2:
        return ""
    return f", {' · '.join(str(count) for count in counts)} threads"


def _ratios(rounds: Rounds, jobs: Sequence[Job]) -> list[str]:
    """Ours over each peer of the same bits, a row per pair and thread count."""
    measures = [(name, measure) for name, measure, _ in COLUMNS[jobs[0].workload.name] if measure in RATIOS]
    heads = " | ".join(name.removesuffix(" ms").removesuffix(" MB") for name, _ in measures)
    lines = ["", f"| ours / theirs | threads | {heads} |", "|---" * (len(measures) + 2) + "|"]
    for ours in [j for j in jobs if j.variant.peer == "ours"]:
        for theirs in jobs:
            alike = theirs.threads == ours.threads and theirs.variant.bits == ours.variant.bits
            if theirs.variant.peer == "ours" or not alike:
                continue
            cells = [_cell(summary.ratio(rounds, ours.key, theirs.key, measure)) for _, measure in measures]
            if not any(cells):
                continue
            names = f"{ours.variant.weights} / {theirs.variant.name}"
            lines.append(f"| {names} | {ours.threads or ''} | {' | '.join(cells)} |")
    return lines if len(lines) > 3 else []


RATIOS = ("first token", "tokens/s", "peak", "sentences/s", "seconds")


def _cell(spread: Spread | None, factor: float = 1) -> str:
    """Median (lowest–highest), three significant digits; the median alone where all are the same."""
    if spread is None:
        return ""
    median, low, high = (_three(value * factor) for value in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low}–{high})"


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


NOTES = [
    "- Everyone: the same weights, the same token ids in, greedy, batch 1, no tokenizer; one prompt and two steps "
    "go before the clock starts; the settings were chosen by the median of three runs in turn. Random weights get "
    "random ids, real ones the beginning of this project's licence and, after it, its first lines again.",
    "- Everyone gives the last position's logits only, except where \"all logits\" says otherwise: exporters' "
    "graphs were cut before the head for that, and the graph as it is stands beside it.",
    "- llama.cpp: compiled here for this processor, driven through its C functions; weights memory-mapped, context "
    "as long as the workload, its cache in 16 bits. Its file holds a made-up vocabulary for GPT-2's shape. "
    "Q4_0 is what its quantizer makes by default, with the vocabulary in more bits; pure has it in Q4_0, too.",
    "- CTranslate2: `Generator.generate_batch` with one worker and a callback per token; its cache is 32-bit.",
    "- optimum-onnx and mobius-onnx: their graphs through plain ONNX Runtime, the cache passed on as it comes, no "
    "torch and no transformers in the process; their own classes need both. Quantized as optimum does it for this "
    "instruction set, per tensor or per channel, from the graph as exported or as optimum's optimizer leaves it.",
    "- Ours: `devices.runtime`, default settings; loading includes verifying every file's hash. The cache is as "
    "long as the workload and 32-bit.",
    "- Loading counts imports and opening the model. A file is the graph or the weights without the vocabulary.",
]


def _settings(record: Record, jobs: Sequence[Job]) -> list[str]:
    """Which of several candidates each job got."""
    lines = ["| settings chosen by the time of the workload | |", "|---|---|"]
    used = [job.tuned for job in jobs]
    for key, chosen in record["settings"].items():
        if key not in used:
            continue
        lines.append(f"| {key} | `{json.dumps(chosen['settings'])}` |")
    return lines if len(lines) > 2 else []


SHOWN = ("llama-cpp-python", "ctranslate2", "optimum-onnx", "optimum", "mobius-onnx", "onnxruntime", "onnx")
SHOWN += ("transformers", "torch", "numpy", "toolchain")


def _versions(record: Record) -> list[str]:
    """The packages that matter, by environment; peers.json has all of them."""
    lines = ["| environment | versions |", "|---|---|"]
    for peer, found in record["versions"].items():
        shown = [f"{name.replace('_', '-')} {version}" for name, version in found.items()]
        chosen = [one for one in shown if one.rsplit(" ", 1)[0] in SHOWN]
        lines.append(f"| {peer} | {', '.join(chosen) or 'not installed'} |")
    return lines


def _slim(record: Record) -> Record:
    """The record with each sample's token times as their total, median and slowest; the rounds file has all."""
    rounds = [{key: _short(sample) for key, sample in found.items()} for found in record["rounds"]]
    return {**record, "rounds": rounds}


def _short(sample: Sample) -> Sample:
    if "token_s" not in sample:
        return sample
    times = sample["token_s"]
    told = {
        "count": len(times),
        "total": sum(times),
        "median": statistics.median(times),
        "slowest": max(times),
    }
    return {**sample, "token_s": told, "tokens": sample["tokens"][: summary.AGREE]}
