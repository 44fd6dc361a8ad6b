"""What an artifact must keep of its checkpoint's quality, and what is said when it does not.

A quality is what the manifest says of it: `whole` and `cached` (export/quality.py), `task` (see `Judge`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devices.artifact import Artifact
from export.recipes import Recipe

Quality = Mapping[str, Any]
# Scores a classifier's artifact on labelled rows: the task's `name`, its `metric`, the number of `rows`, the
# metric of `pytorch` and of `artifact`, and more for the manifest if it likes.
Judge = Callable[[Artifact], dict[str, Any]]


@dataclass(frozen=True)
class Gates:
    """Limits; None is none.

    `perplexity_rise`: percent over PyTorch, at most; `agreement`: percent of positions with PyTorch's argmax,
    at least; `metric_drop`: points (hundredths) of a labelled task's metric below PyTorch's, at most.
    """

    perplexity_rise: float | None = None
    agreement: float | None = None
    metric_drop: float | None = None


REPORT_ONLY = Gates()
# By a recipe's bits: the first entry that is no smaller. In float, parity holds more than these could.
DEFAULTS = {4: Gates(6.0, 93.0, 1.0), 8: Gates(0.5, 99.0, 1.0), 32: Gates(metric_drop=1.0)}
AT_LEAST = ("agreement",)
SENTENCES = {
    "perplexity_rise": "perplexity rises by {figure:.2f} % {where}, at most {limit:g} % may be",
    "agreement": "argmax is PyTorch's at {figure:.2f} % {where}, at least {limit:g} % must be",
    "metric_drop": "the metric falls by {figure:.2f} points {where}, at most {limit:g} may be",
}
VIEWS = {"whole": "with all positions at once", "cached": "by cached steps"}


def default_gates(recipe: Recipe) -> Gates:
    """The gates of a recipe when none are named."""
    return next(gates for bits, gates in sorted(DEFAULTS.items()) if bits >= recipe.bits)


def measured(quality: Quality) -> dict[str, list[tuple[float, str]]]:
    """Each gate's figure, in the gate's unit, in every view there is of it, with where it was taken."""
    found: dict[str, list[tuple[float, str]]] = {gate: [] for gate in SENTENCES}
    for view, words in VIEWS.items():
        if view in quality:
            figures, where = quality[view], f"{words} ({quality[view]['compared']:,} tokens)"
            found["perplexity_rise"].append((100 * (figures["perplexity_ratio"] - 1), where))
            found["agreement"].append((100 * figures["argmax_agreement"], where))
    if task := quality.get("task"):
        # Rounded: 0.91 - 0.90 is a hair more than one point.
        drop = round(100 * (task["pytorch"] - task["artifact"]), 6)
        found["metric_drop"].append((drop, f"({task['metric']}, {task['rows']:,} rows of {task['name']})"))
    return found


def failures(quality: Quality, gates: Gates) -> dict[str, str]:
    """The gates that do not hold, each with the sentence that says so of its worst view."""
    found = {}
    for gate, figures in measured(quality).items():
        limit, sign = getattr(gates, gate), -1 if gate in AT_LEAST else 1
        figure, where = max(figures, key=lambda pair: sign * pair[0], default=(limit, ""))
        if limit is not None and not sign * figure <= sign * limit:
            found[gate] = SENTENCES[gate].format(figure=figure, where=where, limit=limit)
    return found


def figures_text(quality: Quality) -> str:
    """A quality's figures in a few words, as a part of a sentence."""
    if task := quality.get("task"):
        return f"{task['metric']} {task['artifact']:.4f}"
    ratio, agreement = (quality["whole"][key] for key in ("perplexity_ratio", "argmax_agreement"))
    return f"perplexity {100 * (ratio - 1):+.2f} %, argmax {100 * agreement:.2f} %"
