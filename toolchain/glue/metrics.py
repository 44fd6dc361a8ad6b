"""The metrics of labelled tasks, computed by scikit-learn and scipy on the host; a device returns logits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.errors import UserError, unknown

if TYPE_CHECKING:
    import numpy as np

    from bench.settings import TaskRows


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Share of rows whose predicted class is the label."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """F1 of class 1 of a two-class task; 0 where class 1 is neither predicted nor present."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0))


def matthews(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Matthews' correlation coefficient; 0 where all predictions, or all labels, are one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Pearson's correlation; 0 where either side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(predictions, labels) else float(pearsonr(predictions, labels).statistic)


def spearman(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's correlation of ranks; 0 where either side is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def pearson_spearman(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Mean of Pearson's and Spearman's correlation, as GLUE's STS-B; 0 where either side is constant."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def _constant(predictions: Sequence[float], labels: Sequence[float]) -> bool:
    """Whether no correlation is defined."""
    import numpy as np

    return bool(len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0)


METRICS: dict[str, Callable[[Sequence, Sequence], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
}

# What a metric can be computed on; a task that asks for another is refused when its task.toml is read.
CORRELATIONS = ("pearson", "spearman", "pearson_spearman")
PROBLEM_OF = {name: "regression" if name in CORRELATIONS else "classification" for name in METRICS}

# The tasks of the study's average and the metric of each there (arXiv 2110.08460, tables 1 and 2): no STS-B
# and no WNLI. MNLI is taken on its matched dev set; the paper does not say which it took.
SEVEN = {
    "cola": "matthews",
    "rte": "accuracy",
    "mrpc": "f1",
    "sst2": "accuracy",
    "mnli": "accuracy",
    "qnli": "accuracy",
    "qqp": "accuracy",
}


def score(metric: str, predictions: Any, labels: Any) -> float:
    """The metric's value; `predictions` and `labels` [rows] are class indices, or scores in a regression.

    Raises:
        UserError: an unknown metric, no rows, or predictions that are not one per label.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if len(predictions) != len(labels) or not len(labels):
        raise UserError(
            f"{metric}: {len(predictions)} predictions for {len(labels)} labels; give one for each"
        )
    return METRICS[metric](predictions, labels)


def decide(problem: str, logits: "np.ndarray") -> "np.ndarray":
    """Predictions [rows] from logits [rows, labels]: the likeliest class, or a regression's only column."""
    return logits[:, 0] if problem == "regression" else logits.argmax(axis=-1)


def dev_rows(name: str, data: Path | None) -> "TaskRows":
    """A task's dev rows and its metric, as `bench` takes them; the metric is computed here, on the host."""
    import numpy as np

    from bench.settings import TaskRows
    from toolchain.glue.tasks import load_task

    task = load_task(name, data)
    rows = task.rows("dev")

    def value(logits: list[list[float]]) -> float:
        return score(task.metric, decide(task.problem, np.array(logits)), [row.label or 0 for row in rows])

    return TaskRows(task.name, task.metric, [(row.text_a, row.text_b) for row in rows], value)
