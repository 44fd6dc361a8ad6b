"""What each measured model is, from its lineage: which teacher it came from, and what was done to it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from toolchain.report.units import short_count

Result = dict[str, Any]
VERBS = {"pretrain": "healed", "distill": "distilled"}


@dataclass(frozen=True)
class Student:
    """One checkpoint that was measured, or of which artifacts were: a teacher, a student or a classifier."""

    sha256: str
    name: str
    label: str
    kind: str
    layers: int | None
    parameters: int | None
    compression: dict[str, Any] | None
    training: dict[str, Any] | None
    glue: dict[str, Any] | None
    is_teacher: bool

    @property
    def parent(self) -> str | None:
        """Identity of the checkpoint it was made from: a classifier's base, a student's teacher, or None."""
        source = (self.glue or {}).get("base") or (self.compression or {}).get("teacher") or {}
        return source.get("sha256")

    @property
    def record(self) -> dict[str, Any]:
        """The training record that compression.json or training.json holds; empty where there is none."""
        return (self.compression or self.training or {}).get("training") or {}


def identity(result: Result) -> str:
    """The checkpoint a result belongs to: its own hash, or that of the checkpoint its artifact came from."""
    subject = result["subject"]
    checkpoint = (subject.get("lineage") or {}).get("checkpoint") or {}
    return (
        subject["sha256"] if subject["type"] == "checkpoint" else checkpoint.get("sha256", subject["sha256"])
    )


def students(results: Iterable[Result]) -> dict[str, Student]:
    """Every checkpoint of the results by identity, labelled; teachers first, then the deepest."""
    found: dict[str, Student] = {}
    for result in results:
        sha, new = identity(result), _student(result)
        old = found.get(sha)
        # A bench result and an evaluate result may each know what the other does not.
        fields = ("layers", "parameters", "compression", "training", "glue")
        found[sha] = replace(old, **{f: getattr(old, f) or getattr(new, f) for f in fields}) if old else new
    hows = [s.compression or {} for s in found.values()]
    teachers = {how["teacher"]["sha256"] for how in hows if how.get("teacher")}
    labelled = _labelled({sha: replace(s, is_teacher=sha in teachers) for sha, s in found.items()})
    rank = {"truncate": 0, "random": 1}
    trained = {"none": 0, "pretrain": 1, "distill": 2}

    def order(s: Student) -> tuple[Any, ...]:
        how = s.compression or {}
        made = rank.get(how.get("init", ""), 0), trained.get(how.get("train", ""), 0)
        return (
            s.kind == "classifier",
            not s.is_teacher,
            s.compression is not None,
            -(s.layers or 0),
            made,
            s.label,
        )

    return {s.sha256: s for s in sorted(labelled.values(), key=order)}


def _student(result: Result) -> Student:
    subject = result["subject"]
    lineage, model = subject.get("lineage") or {}, subject.get("model") or {}
    glue = lineage.get("glue")
    name = (lineage.get("checkpoint") or {}).get("name") or subject["name"]
    return Student(
        sha256=identity(result),
        name=name,
        label=name,
        kind=subject.get("kind") or ("classifier" if glue else "decoder"),
        layers=subject.get("layers") or model.get("layers"),
        parameters=subject.get("parameters") or model.get("parameters"),
        compression=lineage.get("compression") or (glue or {}).get("compression"),
        training=lineage.get("training") or (glue or {}).get("training"),
        glue=glue,
        is_teacher=False,
    )


def _labelled(found: dict[str, Student]) -> dict[str, Student]:
    """The students with labels made from lineage; where two would read alike, their names tell them apart."""
    several = sum(s.is_teacher for s in found.values()) > 1
    labels = {sha: label(s, several) for sha, s in found.items() if not s.glue}
    for sha, s in found.items():
        if s.glue:
            labels[sha] = labels.get(s.parent or "") or label(replace(s, glue=None), several)
    seen = Counter((labels[sha], (s.glue or {}).get("task")) for sha, s in found.items())
    for tell in (lambda s: f" ({s.name})", lambda s: f" [{s.sha256[:6]}]"):
        for sha, s in found.items():
            if seen[labels[sha], (s.glue or {}).get("task")] > 1:
                labels[sha] += tell(s)
        seen = Counter((labels[sha], (s.glue or {}).get("task")) for sha, s in found.items())
    return {sha: replace(s, label=labels[sha]) for sha, s in found.items()}


def label(student: Student, several_teachers: bool = False) -> str:
    """What a student is, in a few words, from its lineage: "6 layers pseudo-uniform, healed 150k tokens"."""
    how, n = student.compression, student.layers
    depth = f"{n} layer{'s' * (n != 1)}" if n else "unknown depth"
    if how is None:
        return (
            f"teacher, {depth}" if student.is_teacher and not several_teachers else f"{student.name}, {depth}"
        )
    tokens = student.record.get("tokens")
    amount = f" {short_count(tokens)} tokens" if tokens else ""
    origin = f" of {(how.get('teacher') or {}).get('name')}" if several_teachers else ""
    if how.get("init") == "random":
        return f"{depth}{origin} from nothing,{amount}" if amount else f"{depth}{origin} from nothing"
    select = "kept by hand" if how.get("select") in (None, "keep") else how["select"]
    train = how.get("train") or "none"
    objective = how.get("objective")
    via = f" ({objective})" if train == "distill" and objective not in (None, "logits") else ""
    state = "as cut" if train == "none" else f"{VERBS.get(train, train)}{via}{amount}"
    return f"{depth} {select}{origin}, {state}".replace("  ", " ").replace(" ,", ",")
