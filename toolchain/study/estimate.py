"""What a study will cost before it runs: tokens, steps, hours and disk of each stage, from shapes and rates."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.errors import UserError
from devices.files import read_json
from export.architecture import Architecture, describe, describe_at, parameters
from toolchain.compress.cost import flops_per_token
from toolchain.compress.score import TOKENS
from toolchain.demo import shipped
from toolchain.glue import docs_tasks
from toolchain.glue.description import read_toml
from toolchain.glue.tasks import BUILT_IN
from toolchain.study.spec import Stage, Study

START = 6.0  # seconds until a process has imported torch and read its inputs
EFFICIENCY = 0.9  # share of a large product's rate that the demo's students reach in training
CHARACTERS = 4  # of English text a token, where the tokens are not counted
ROW, ROWS = (
    30,
    (5000, 1000),
)  # tokens of a task's row, and rows to train and to measure on, where they are not known
CLEANED = 2e7  # bytes a second that a process cleans (docs/log.md)
# How many times a plain step's products a method computes on the student, and whether its teacher runs along.
METHOD_COST = {"self-kd": (2.0, True), "mate": (2.5, True), "combined": (2.5, True), "annealing": (1.5, True)}


@dataclass(frozen=True)
class Cost:
    """What one stage takes: training or scoring tokens, optimizer steps, multiply-add operations, bytes on disk."""

    tokens: int = 0
    steps: int = 0
    flops: float = 0.0
    bytes: int = 0
    reading: float = 0.0  # seconds that no product takes

    def seconds(self, rate: float, jobs: int) -> float:
        """With one of `jobs` equal shares of a machine that does `rate` FLOP/s in a large product."""
        return START + self.reading + self.flops / (rate * EFFICIENCY / jobs)


def costs(study: Study) -> dict[str, Cost]:
    """An estimate for every stage. UserError for a stage that asks more layers than its model has."""
    shapes = {name: _teacher(study, name) for name in study.teachers}
    found: dict[str, Cost] = {}
    for name, stage in study.stages.items():
        if stage.kind == "clean":
            size = CHARACTERS * _tokens(study, stage.of)
            found[name] = Cost(bytes=size, reading=size / CLEANED)
            continue
        shape = shapes.get(stage.of)
        if stage.kind == "compress" and shape is not None:
            whole, shape = shape, _cut(study, stage, shape)
            choosing = _choosing(stage, whole, shape)
        else:
            choosing = 0.0
        shapes[name] = shape
        if shape is not None:
            teacher = shapes.get(stage.options.get("teacher", stage.of))
            counted = COUNTERS[stage.kind](study, stage, shape, teacher or shape)
            found[name] = replace(counted, flops=counted.flops + choosing)
        else:
            found[name] = Cost()
    return found


def rate() -> float:
    """FLOP/s of a 1024 x 1024 float32 product on this machine, the best of a few."""
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _teacher(study: Study, name: str) -> Architecture | None:
    """The teacher's shape from its folder, or as the study declares it; None where neither is there."""
    folder = Path(shipped(study.teachers[name]))
    if folder.is_dir():
        return describe_at(folder, read_json(folder / "config.json", "the teacher's configuration"))
    return describe(study.shapes[name]) if name in study.shapes else None


def _cut(study: Study, stage: Stage, shape: Architecture) -> Architecture:
    keep = stage.options.get("keep")
    layers = len(str(keep).split(",")) if keep else stage.options.get("layers", shape.layers)
    if layers > shape.layers:
        raise UserError(
            f"{study.file}: [compress.{stage.section}] layers {layers}: {stage.of} has {shape.layers} layers"
        )
    return replace(shape, layers=layers)


def _choosing(stage: Stage, whole: Architecture, cut: Architecture) -> float:
    """Operations to choose layers by measurement: one pass over the text, or one for each layer in each round."""
    select = stage.options.get("select")
    if select not in TOKENS:
        return 0.0
    passes = sum(range(cut.layers + 1, whole.layers + 1)) if select == "perplexity" else 1
    return 2.0 * stage.options.get("select-tokens", TOKENS[select]) * _products(whole) * passes


def _products(shape: Architecture) -> int:
    """Weights that a token is multiplied with: all but the embeddings, and the head."""
    bare = parameters(replace(shape, layers=0)) if shape.layers else 0
    return parameters(shape) - bare + shape.vocab * shape.hidden


def _text_size(study: Study, name: str) -> int | None:
    """Bytes of a text that is here; None for one that is not."""
    path = Path(study.texts.get(name, name))
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else None


def _tokens(study: Study, option: Any) -> int:
    """Tokens of a corpus: as declared, else by its bytes."""
    name = next((name for name, path in study.texts.items() if option in (name, path)), str(option))
    if name in study.sizes:
        return study.sizes[name]
    if option in study.stages:
        return _tokens(study, study.stages[option].of)
    if option == "stdlib":
        from toolchain.corpus import calibration_file

        return calibration_file("stdlib").stat().st_size // CHARACTERS
    return (_text_size(study, name) or 0) // CHARACTERS


def _compress(study: Study, stage: Stage, shape: Architecture, teacher: Architecture) -> Cost:
    size = 4 * parameters(shape)
    if stage.options.get("train", "none") == "none":
        return Cost(bytes=size)
    window = stage.options.get("window", min(512, shape.positions))
    step = window * stage.options.get("batch", 8)
    tokens = stage.options.get("tokens") or stage.options.get("steps", 0) * step
    if not tokens:
        corpus = _tokens(study, stage.options.get("corpus", "stdlib"))
        tokens = int(corpus * stage.options.get("share", 1.0) * stage.options.get("epochs", 1.0))
    towards = teacher if stage.options["train"] == "distill" else None
    flops = tokens * flops_per_token(shape, window, towards)
    return Cost(tokens, math.ceil(tokens / step), flops, size)


def _rows(task: str) -> tuple[int, int]:
    """Rows to train and to measure on: GLUE's official counts, or those that tasks made here have at most."""
    if task in docs_tasks.TASKS:
        return docs_tasks.TRAIN_ROWS, docs_tasks.DEV_ROWS
    if not (BUILT_IN / f"{task}.toml").is_file():
        return ROWS
    counts = read_toml(BUILT_IN / f"{task}.toml")["rows"]
    train, *dev = (
        max(n) if isinstance(n, list) else n for key, n in counts.items() if not key.startswith("test")
    )
    return train, sum(dev)


def _glue(study: Study, stage: Stage, shape: Architecture, teacher: Architecture) -> Cost:
    task, method = str(stage.options.get("task")), str(stage.options.get("method", "finetune"))
    train, dev = _rows(task)
    rows = min(train, stage.options.get("rows", train))
    epochs, batch = stage.options.get("epochs", 3), stage.options.get("batch", 16)
    seeds = len(str(stage.options.get("seeds", "1")).split(","))
    times, guided = METHOD_COST.get(method, (1.0, "teacher" in stage.options))
    tokens = rows * epochs * ROW
    body = _products(shape) - shape.vocab * shape.hidden
    other = _products(teacher) - teacher.vocab * teacher.hidden
    flops = tokens * (6 * body * times + guided * 2 * other) + dev * epochs * ROW * 2 * body
    return Cost(
        seeds * tokens, seeds * math.ceil(rows / batch) * epochs, seeds * flops, seeds * 4 * parameters(shape)
    )


def _export(study: Study, stage: Stage, shape: Architecture, teacher: Architecture) -> Cost:
    share = {"int8": 1.1, "int4": 0.7}
    size = next(
        (s for name, s in share.items() if stage.options.get(name) or name in str(stage.options)), 4.0
    )
    return Cost(flops=2 * 4096 * _products(shape), bytes=int(size * parameters(shape)))


def _evaluate(study: Study, stage: Stage, shape: Architecture, teacher: Architecture) -> Cost:
    window = stage.options.get("window", min(512, shape.positions))
    blocks = stage.options.get("blocks")
    tokens = blocks * window if blocks else _tokens(study, stage.options.get("corpus", "stdlib"))
    return Cost(tokens=tokens, flops=2 * tokens * _products(shape))


def _bench(study: Study, stage: Stage, shape: Architecture, teacher: Architecture) -> Cost:
    return Cost(flops=2 * 5000 * _products(shape))


COUNTERS = {
    "compress": _compress,
    "glue": _glue,
    "export": _export,
    "evaluate": _evaluate,
    "bench": _bench,
}
