"""Two results beside each other: the ratio of each figure, with the interval that the rounds allow."""

import math
from pathlib import Path
from typing import Any

from bench import stats
from devices.errors import UserError
from devices.files import read_json

# What is compared: the field, what a larger one means and a smaller one.
FIGURES = {
    "start_s": ("start to first token", "slower", "faster"),
    "first_token_s": ("time to first token", "slower", "faster"),
    "token_s": ("time per token", "slower", "faster"),
    "sentence_s": ("time per sentence", "slower", "faster"),
    "load_s": ("load", "slower", "faster"),
    "peak_rss_bytes": ("peak memory", "larger", "smaller"),
}
MAIN = ("token_s", "sentence_s", "start_s")  # what a workload is for
SCHEMA = 1
WIDE = 1.05  # an interval that reaches further than this from 1 says little by saying "no difference"


def read(path: Path) -> dict[str, Any]:
    """A result of bench; UserError naming the file where it is none, is damaged or is of a newer schema."""
    found = read_json(path, "a result of bench")
    schema = found.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"{path}: written by a newer toolchain (schema {schema}, this one reads {SCHEMA}); update it"
        )
    if schema != SCHEMA or found.get("kind") != "bench":
        raise UserError(f"{path}: is no result of bench; name a file that toolchain bench --out wrote")
    for key, kind in {
        "subject": dict,
        "device": dict,
        "workload": dict,
        "rounds": int,
        "threads": int,
    }.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{path}: has no {key}; measure again")
    for part, key in (("subject", "name"), ("device", "name"), ("workload", "name")):
        if not isinstance(found[part].get(key), str):
            raise UserError(f"{path}: its {part} has no {key}; measure again")
    for key in FIGURES:
        _rounds(path, found, key)
    return found


def compare(a: dict[str, Any], b: dict[str, Any], across: bool = False) -> dict[str, Any]:
    """Figures of `b` over `a`, both from `read`: {a, b, paired, sittings, differs, lost, confidence,
    figures: {field: stats.compare}}.

    Paired by round where both come from the same interleaved run. Otherwise a time's verdict is `apart`: the
    rounds of a run say nothing about how far the machine moves until the next one. `differs` names the conditions
    that differ; with any there, UserError unless `across` asks for it.
    """
    differs = _differs(a, b)
    if differs and not across:
        raise UserError(
            f"the two were not measured alike: {'; '.join(differs)}; compare results of the same "
            "conditions, or say --across"
        )
    for one in (a, b):
        if one["device"].get("emulated"):
            raise UserError(
                f"{one['device']['name']} is emulated: it has instructions and no times; "
                "compare those with --check"
            )
    paired = _run(a) is not None and _run(a) == _run(b) and a["rounds"] == b["rounds"]
    figures, lost = {}, []
    for key in FIGURES:
        x, y = (_rounds(None, one, key) for one in (a, b))
        if bool(x) != bool(y):
            lost.append(FIGURES[key][0])
        found = stats.compare(x, y, paired and len(x) == len(y)) if x and y else None
        if found is None:
            continue
        apart = not paired and found["verdict"] in ("more", "less", "same") and key.endswith("_s")
        figures[key] = {**found, "verdict": "apart"} if apart else found
    sides = {side: {"name": _name(one), "file": one.get("file")} for side, one in (("a", a), ("b", b))}
    sittings = max((one.get("run") or {}).get("sittings", 1) for one in (a, b))
    how: dict[str, Any] = {"paired": paired, "sittings": sittings, "differs": differs, "lost": lost}
    how["confidence"] = stats.CONFIDENCE
    return {**sides, **how, "figures": figures}


def lines(found: dict[str, Any]) -> list[str]:
    """The comparison in words, a line a figure, and how it was made."""
    names = [FIGURES[key][0] for key in found["figures"]]
    width = max(map(len, names), default=0)
    told = [f"B {found['b']['name']}", f"A {found['a']['name']}"]
    for (key, one), name in zip(found["figures"].items(), names, strict=True):
        told.append(f"{name:<{width}}  {said(key, one)}")
    told += [f"in one of the two only: {name}" for name in found["lost"]]
    told += [f"not alike: {one}" for one in found["differs"]]
    rounds = min((one["rounds"] for one in found["figures"].values()), default=0)
    how = "paired by round" if found["paired"] else "measured in runs of their own"
    told.append(f"{found['confidence']:.0%} intervals over {rounds} rounds, {how}")
    if found["sittings"] > 1:
        told.append(f"the run was cut off and went on: {found['sittings']} sittings")
    if not found["paired"]:
        told.append(
            "how far the machine moved between the runs is not known: whether one is slower is told by measuring "
            "both in one run, toolchain bench A B --rounds 12"
        )
    return told


def said(key: str, one: dict[str, Any]) -> str:
    """One figure: "B is 1.07x slower (1.05 to 1.09)", "no difference (0.99 to 1.01)", or too few rounds."""
    _, more, less = FIGURES[key]
    if one["verdict"] == "few":
        return f"too few rounds to tell ({one['rounds']} of at least {stats.FEWEST}); the ratio is {one['ratio']:.3f}"
    low, high = one["low"], one["high"]
    if one["verdict"] == "apart":
        return f"B took {one['ratio']:.3f}x as long ({low:.3f} to {high:.3f} by its rounds alone)"
    if one["verdict"] == "same":
        wide = max(high, 1 / low)
        hint = f"; too unsteady to see less than {wide - 1:.0%}, take more rounds" if wide > WIDE else ""
        return f"no difference ({low:.3f} to {high:.3f}){hint}"
    if one["verdict"] == "more":
        return f"B is {one['ratio']:.3f}x {more} ({low:.3f} to {high:.3f})"
    return f"B is {1 / one['ratio']:.3f}x {less} ({1 / high:.3f} to {1 / low:.3f})"


def slower(found: dict[str, Any]) -> list[str]:
    """The figures in which B is worse than A, in words; UserError where that cannot be told.

    So it is without rounds that pair, with a figure that one of the two has not, and, where nothing is worse, with
    a MAIN figure whose interval is WIDE.
    """
    if found["lost"]:
        raise UserError(
            f"--fail-if-slower: only one of the two has {', '.join(found['lost'])}; measure again"
        )
    if not found["paired"] or any(one["verdict"] == "few" for one in found["figures"].values()):
        raise UserError(
            "--fail-if-slower needs both results from one run of enough rounds: "
            "toolchain bench A B --rounds 12"
        )
    worse = {key: one for key, one in found["figures"].items() if one["verdict"] == "more"}
    unsteady = [
        FIGURES[key][0]
        for key, one in found["figures"].items()
        if key in MAIN and one["verdict"] == "same" and max(one["high"], 1 / one["low"]) > WIDE
    ]
    if unsteady and not worse:
        raise UserError(f"--fail-if-slower: {', '.join(unsteady)} is too unsteady to tell; take more rounds")
    return [f"{FIGURES[key][0]}: {said(key, one)}" for key, one in worse.items()]


def _differs(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The conditions that are not the same, in words."""
    shown = {
        "device": lambda one: one["device"]["name"],
        "processor": lambda one: (one.get("environment") or {}).get("cpu"),
        "workload": lambda one: _workload(one["workload"]),
        "threads": lambda one: one["threads"],
        "ONNX Runtime": lambda one: (one.get("environment") or {}).get("onnxruntime"),
    }
    pairs = {what: (show(a), show(b)) for what, show in shown.items()}
    return [f"{what} {x} and {y}" for what, (x, y) in pairs.items() if x != y]


def _workload(workload: dict[str, Any]) -> str:
    keys = ("prompt", "generate", "rows", "tokens", "batch", "minutes")
    sizes = ", ".join(f"{key} {workload[key]}" for key in keys if workload.get(key) is not None)
    return f"{workload['name']} ({sizes})"


def _rounds(path: Path | None, found: dict[str, Any], key: str) -> list[float]:
    """A figure's value in each round; of older files, whose samples are not told apart, equal shares of these."""
    spread = found.get(key)
    if spread is None:
        return []
    try:
        rounds, samples = spread.get("rounds"), spread["samples"]
        if rounds is None:
            share, rest = divmod(len(samples), found["rounds"])
            if rest or not share:
                return []
            rounds = [stats.median(samples[at : at + share]) for at in range(0, len(samples), share)]
        values = [float(value) for value in rounds]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UserError(f"{path}: its {key} is damaged; measure again") from None
    if not all(0 < value < math.inf for value in values):
        raise UserError(f"{path}: its {key} is damaged, each must be a positive number; measure again")
    return values


def _run(one: dict[str, Any]) -> Any:
    return (one.get("run") or {}).get("id")


def _name(one: dict[str, Any]) -> str:
    where = f"{one['subject']['name']} on {one['device']['name']}, {one['workload']['name']}"
    return f"{where}, {one['threads']} thread{'s' * (one['threads'] != 1)}"
