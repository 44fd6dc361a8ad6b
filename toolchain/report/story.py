"""What the numbers say, in plain words: sentences that are written only where the numbers to write them exist."""

from toolchain.report.join import Row
from toolchain.report.lineage import Student
from toolchain.report.units import mb, ms, percent, three

Known = dict[str, Student]


def story(rows: list[Row], every: list[Row], known: Known) -> list[str]:
    """Sentences about the language models of one setting (`rows`) and the classifiers of `every`, headline first."""
    told = [headline(rows, known), quantized(rows, known), healing(rows, known), from_nothing(rows, known)]
    told += classifiers(every, known)
    return [sentence for sentence in told if sentence]


def _cost(row: Row) -> tuple[str, float] | None:
    """What a row costs: its time per token where one was measured, else its file size."""
    for key in ("token_s_median", "file_bytes"):
        if row[key]:
            return key, row[key]
    return None


def _of(rows: list[Row], student: Student, recipe: str | None = None) -> list[Row]:
    """A student's artifacts that have a perplexity, best first; of one recipe if it is named."""
    mine = [r for r in rows if r["checkpoint_sha256"] == student.sha256 and r["subject"] == "artifact"]
    able = [r for r in mine if r["perplexity"] is not None and recipe in (None, r["recipe"])]
    return sorted(able, key=lambda r: r["perplexity"])


def _plain(rows: list[Row], student: Student) -> Row | None:
    """A student's numbers without quantization: its fp32 artifact, else its PyTorch checkpoint."""
    torch = [r for r in rows if r["checkpoint_sha256"] == student.sha256 and r["subject"] == "checkpoint"]
    return next(iter(_of(rows, student, "fp32") + [r for r in torch if r["perplexity"] is not None]), None)


def _teacher(rows: list[Row], known: Known) -> Student | None:
    present = {r["checkpoint_sha256"] for r in rows}
    return next((s for sha, s in known.items() if s.is_teacher and sha in present), None)


def best_student(rows: list[Row], known: Known) -> Row | None:
    """The artifact the headline is about: the best student's cheapest that is within 5 % of its best perplexity."""
    able = [r for s in known.values() if s.parent and s.kind == "decoder" for r in _of(rows, s)]
    if not able:
        return None
    best = min(able, key=lambda r: r["perplexity"])
    near = [
        r for r in _of(rows, known[best["checkpoint_sha256"]]) if r["perplexity"] <= 1.05 * best["perplexity"]
    ]
    return min(near, key=lambda r: (_cost(r) or ("", float("inf")))[1])


def headline(rows: list[Row], known: Known) -> str:
    """The best student against its whole teacher: speed, size, and what they cost in perplexity."""
    best, teacher = best_student(rows, known), _teacher(rows, known)
    whole = _plain(rows, teacher) if teacher else None
    if best is None or whole is None:
        return _lone(rows)
    parts = [f"The best student ({best['student']}; {best['recipe']})"]
    if best["token_s_median"] and whole["token_s_median"]:
        speed = whole["token_s_median"] / best["token_s_median"]
        parts.append(
            f"writes a token in {ms(best['token_s_median'])} ms, {faster(speed)} its {whole['recipe']} teacher,"
        )
    else:
        parts.append("stands beside its teacher:")
    if best["file_bytes"] and whole["file_bytes"] and whole["subject"] == "artifact":
        parts.append(f"from {mb(best['file_bytes'])} MB instead of {mb(whole['file_bytes'])};")
    change = percent(best["perplexity"] / whole["perplexity"])
    parts.append(
        f"its perplexity is {three(best['perplexity'])} against {three(whole['perplexity'])} ({change})."
    )
    return " ".join(parts)


def faster(ratio: float) -> str:
    """A ratio of times in words that do not flatter."""
    if ratio >= 1.05:
        return f"{three(ratio)} times as fast as"
    return "no faster than" if ratio > 0.95 else f"{three(1 / ratio)} times slower than"


def _lone(rows: list[Row]) -> str:
    able = [r for r in rows if r["perplexity"] is not None]
    if not able:
        return "No perplexity was measured; the tables hold what was."
    best = min(able, key=lambda r: r["perplexity"])
    what = best["recipe"] or "PyTorch"
    return f"The best perplexity, {three(best['perplexity'])}, is that of {best['student']} ({what})."


def quantized(rows: list[Row], known: Known) -> str:
    """What quantizing alone does to the whole teacher."""
    teacher = _teacher(rows, known)
    plain = next(iter(_of(rows, teacher, "fp32")), None) if teacher else None
    if teacher is None or plain is None:
        return ""
    clauses = []
    for r in rows:
        if (
            r["checkpoint_sha256"] == teacher.sha256
            and r["subject"] == "artifact"
            and r["recipe"] != "fp32"
            and r["perplexity"]
        ):
            clause = (
                f"{r['recipe']} changes its perplexity by {percent(r['perplexity'] / plain['perplexity'])}"
            )
            if r["token_s_median"] and plain["token_s_median"]:
                clause += f" and is {faster(plain['token_s_median'] / r['token_s_median'])} fp32"
            clauses.append(clause)
    return f"The teacher keeps all its layers: {'; '.join(clauses)}." if clauses else ""


def healing(rows: list[Row], known: Known) -> str:
    """What cutting alone costs, and how much of it training wins back."""
    teacher = _teacher(rows, known)
    whole = _plain(rows, teacher) if teacher else None
    made = [(s, _plain(rows, s)) for s in known.values() if (s.compression or {}).get("init") == "truncate"]
    found = [(s, r) for s, r in made if r and s.compression]
    cut = [(s, r) for s, r in found if s.compression["train"] in (None, "none")]
    healed = [(s, r) for s, r in found if s.compression["train"] not in (None, "none")]
    if not cut or whole is None:
        return ""
    worst = max(cut, key=lambda pair: pair[1]["perplexity"])[1]
    text = f"Layers cut and nothing else ({worst['student']}): perplexity {three(worst['perplexity'])}"
    text += f", {three(worst['perplexity'] / whole['perplexity'])} times the teacher's"
    parts = [f"{three(r['perplexity'])} {s.label.rsplit(', ', 1)[-1]}" for s, r in healed]
    return f"{text}; after training {', '.join(parts)}." if parts else f"{text}."


def from_nothing(rows: list[Row], known: Known) -> str:
    """The control: a model of the student's shape that never saw its teacher."""
    control = [_plain(rows, s) for s in known.values() if (s.compression or {}).get("init") == "random"]
    best = best_student(rows, known)
    able = [r for r in control if r]
    if not able or best is None:
        return ""
    r = min(able, key=lambda r: r["perplexity"])
    return f"The same shape without the teacher's weights ({r['student']}) reaches perplexity {three(r['perplexity'])}."


def classifiers(rows: list[Row], known: Known) -> list[str]:
    """A sentence per task: each model's best artifact beside the bag of n-grams."""
    sentences = []
    mine = [r for r in rows if r["kind"] == "classifier" and r["task_value"] is not None]
    for task in dict.fromkeys(r["task"] for r in mine):
        scores: dict[str, Row] = {}
        for r in (r for r in mine if r["task"] == task):
            old = scores.get(r["student"])
            if old is None or (r["subject"] == "artifact" and old["subject"] == "checkpoint"):
                scores[r["student"]] = r
        floor = next((r["baseline"] for r in mine if r["task"] == task and r["baseline"] is not None), None)
        parts = [f"{student} {three(r['task_value'])}" for student, r in scores.items()]
        beside = f"; a bag of n-grams reaches {three(floor)}" if floor is not None else ""
        metric = next((r["metric"] for r in mine if r["task"] == task and r["metric"]), "score")
        sentences.append(f"{metric.capitalize()} on {task}: {', '.join(parts)}{beside}.")
    return sentences
