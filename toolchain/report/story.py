"""What the numbers say, in plain words: a sentence is written only where its numbers exist."""

from toolchain.report.join import Row
from toolchain.report.lineage import Student
from toolchain.report.tables import fronts
from toolchain.report.units import mb, ms, percent, short_count, three

Known = dict[str, Student]
FAR = 2.0  # times the teacher's perplexity


def story(rows: list[Row], every: list[Row], known: Known) -> list[str]:
    """Sentences about the language models of one setting and the classifiers of `every`, headline first.

    They tell of one teacher and its own students: the first teacher that has a number without quantization.
    """
    able = [(s, plain(rows, s)) for s in known.values() if s.is_teacher]
    teacher, whole = next(((s, r) for s, r in able if r), (None, None))
    if teacher is None or whole is None:
        return [_lone(rows), *classifiers(every)]
    own = [s for s in known.values() if s.parent == teacher.sha256 and s.kind == "decoder"]
    best = best_student(rows, own)
    told = [headline(rows, best, whole)] if best else [_lone(rows)]
    told += [quantized(rows, teacher), healing(rows, own, whole), from_nothing(rows, own)]
    told.append(far_behind(rows, own, whole))
    return [sentence for sentence in told + classifiers(every) if sentence]


def artifacts(rows: list[Row], student: Student) -> list[Row]:
    """A student's artifacts that have a perplexity, best first."""
    mine = [r for r in rows if r["checkpoint_sha256"] == student.sha256 and r["subject"] == "artifact"]
    return sorted((r for r in mine if r["perplexity"] is not None), key=lambda r: r["perplexity"])


def plain(rows: list[Row], student: Student) -> Row | None:
    """A student's numbers without quantization: its fp32 artifact, else its PyTorch checkpoint."""
    torch = [r for r in rows if r["checkpoint_sha256"] == student.sha256 and r["subject"] == "checkpoint"]
    exact = [r for r in artifacts(rows, student) if r["recipe"] == "fp32"]
    return next((r for r in exact + torch if r["perplexity"] is not None), None)


def best_student(rows: list[Row], own: list[Student]) -> Row | None:
    """What the headline is about: the best student's cheapest artifact within 5 % of its best perplexity."""
    able = [found for s in own if (found := artifacts(rows, s))]
    if not able:
        return None
    best = min(able, key=lambda found: found[0]["perplexity"])
    near = [r for r in best if r["perplexity"] <= 1.05 * best[0]["perplexity"]]
    return min(near, key=lambda r: r["token_s_median"] or r["file_bytes"] or 0)


def headline(rows: list[Row], best: Row, whole: Row) -> str:
    """The best student against its whole teacher: speed, size, and what they cost in perplexity."""
    text = f"The best student ({best['student']}; {best['recipe']})"
    twins = [r for r in rows if r["checkpoint_sha256"] == whole["checkpoint_sha256"] and r["token_s_median"]]
    twins = [r for r in twins if best["token_s_median"] and r["recipe"] in (whole["recipe"], best["recipe"])]
    if twins:
        speeds = [
            f"{faster(r['token_s_median'] / best['token_s_median'])} its teacher in {r['recipe']}"
            for r in twins
        ]
        text += f" writes a token in {ms(best['token_s_median'])} ms, {' and '.join(speeds)},"
    if best["file_bytes"] and whole["file_bytes"] and whole["subject"] == "artifact":
        text += f" from {mb(best['file_bytes'])} MB instead of {mb(whole['file_bytes'])} MB;"
    ratio = best["perplexity"] / whole["perplexity"]
    change = percent(ratio) if ratio < 3 else f"{three(ratio)} times as high"
    text += f" its perplexity is {three(best['perplexity'])} against {three(whole['perplexity'])} ({change})."
    return text + beaten(rows, best)


def beaten(rows: list[Row], best: Row) -> str:
    """Says so where the headline's student is off the front: something else is faster and better."""
    if not best["token_s_median"] or any(r is best for r in fronts(rows, "token_s_median")):
        return ""
    r = next(
        r for r in reversed(fronts(rows, "token_s_median")) if r["token_s_median"] <= best["token_s_median"]
    )
    return f" It is not worth having: {r['student']} in {r['recipe']} is as fast or faster, and better."


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


def quantized(rows: list[Row], teacher: Student) -> str:
    """What quantizing alone does to the whole teacher."""
    whole = next((r for r in artifacts(rows, teacher) if r["recipe"] == "fp32"), None)
    clauses = []
    for r in artifacts(rows, teacher):
        if whole and r["recipe"] != "fp32":
            clause = f"{percent(r['perplexity'] / whole['perplexity'])} perplexity in {r['recipe']}"
            if r["token_s_median"] and whole["token_s_median"]:
                clause += f", {faster(whole['token_s_median'] / r['token_s_median'])} fp32"
            clauses.append(clause)
    return f"The teacher with all its layers, only quantized: {'; '.join(clauses)}." if clauses else ""


def healing(rows: list[Row], own: list[Student], whole: Row) -> str:
    """What cutting alone costs, and how much of it training wins back in students of the same depth."""
    found = cut_students(rows, own)
    cut = [r for train, r in found if train == "none"]
    if not cut:
        return ""
    worst = max(cut, key=lambda r: r["perplexity"])
    text = (
        f"Cutting layers and nothing else ({worst['student']}) gives perplexity {three(worst['perplexity'])},"
    )
    text += f" {three(worst['perplexity'] / whole['perplexity'])} times the teacher's"
    parts = [
        f"{three(r['perplexity'])} ({r['student'].rsplit(', ', 1)[-1]})"
        for train, r in found
        if train != "none" and r["layers"] == worst["layers"]
    ]
    return f"{text}; training brings it to {' and '.join(parts)}." if parts else f"{text}."


def cut_students(rows: list[Row], own: list[Student]) -> list[tuple[str, Row]]:
    """How each student that was cut from its teacher was trained ("none", ...), and its numbers."""
    made = [(s.compression or {}, plain(rows, s)) for s in own]
    return [(how.get("train") or "none", r) for how, r in made if r and how.get("init") == "truncate"]


def far_behind(rows: list[Row], own: list[Student], whole: Row) -> str:
    """Says so where even the best trained student has more than twice its teacher's perplexity."""
    trained = [r for train, r in cut_students(rows, own) if train != "none"]
    best = min(trained, key=lambda r: r["perplexity"], default=None)
    if best is None or best["perplexity"] <= FAR * whole["perplexity"]:
        return ""
    amount = f" ({short_count(best['train_tokens'])} tokens)" if best["train_tokens"] else ""
    text = f"All students stay far behind the teacher: the best trained one ({best['student']}) has "
    text += f"{three(best['perplexity'] / whole['perplexity'])} times its perplexity."
    return f"{text} Training so short{amount} does not bring back what was cut."


def from_nothing(rows: list[Row], own: list[Student]) -> str:
    """The control: a model of the student's shape that never saw its teacher."""
    control = [plain(rows, s) for s in own if (s.compression or {}).get("init") == "random"]
    able = [r for r in control if r]
    if not able:
        return ""
    r = min(able, key=lambda r: r["perplexity"])
    return f"A model that never saw the teacher ({r['student']}) reaches perplexity {three(r['perplexity'])}."


def classifiers(rows: list[Row]) -> list[str]:
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
