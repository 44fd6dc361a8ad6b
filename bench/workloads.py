"""What to measure: how much goes in and how much comes out. Plain data; a new workload is a new entry."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from devices.errors import UserError, unknown


@dataclass(frozen=True)
class Workload:
    """`prompt` and `generate` are tokens (decoder); `rows` are sentences of up to `tokens` tokens, run
    `batch` at a time and the whole set `passes` times (classifier). `style` is how it is measured
    (bench/measure.py: STYLES), `minutes` how long. What does not apply is null."""

    name: str
    kind: str  # the kind of artifact it is for
    description: str
    prompt: int | None = None
    generate: int | None = None
    rows: int | None = None
    tokens: int | None = None
    batch: int = 1
    passes: int = 1
    style: str = "generate"
    minutes: float | None = None
    scaled_from: dict[str, int] | None = None  # the sizes asked for, where the model has too few positions

    def as_dict(self) -> dict[str, Any]:
        """As a result records it."""
        return asdict(self)


WORKLOADS: dict[str, Workload] = {
    "chat": Workload("chat", "decoder", "a prompt of 128 tokens, then 64 new ones", prompt=128, generate=64),
    "decode": Workload(
        "decode", "decoder", "a prompt of 8 tokens, then 120 new ones", prompt=8, generate=120
    ),
    "prompt": Workload(
        "prompt", "decoder", "a prompt of 512 tokens, then 8 new ones", prompt=512, generate=8
    ),
    "long-prompt": Workload(
        "long-prompt",
        "decoder",
        "a prompt of 900 tokens, then 124 new ones: a context of 1024, filled",
        prompt=900,
        generate=124,
    ),
    "cold-start": Workload(
        "cold-start",
        "decoder",
        "from the start of a process to the first token after a prompt of 8; its hashes verified",
        prompt=8,
        generate=1,
        passes=3,
        style="cold",
    ),
    "sustained": Workload(
        "sustained",
        "decoder",
        "chat again and again for minutes: time per token beside clock and temperature",
        prompt=128,
        generate=64,
        style="sustained",
        minutes=5.0,
    ),
    "short": Workload(
        "short", "decoder", "a prompt of 32 tokens, then 16 new ones: for emulators", prompt=32, generate=16
    ),
    "classify": Workload(
        "classify",
        "classifier",
        "sentences (a task's, where one is named), 32 at a time",
        rows=128,
        tokens=48,
        batch=32,
        passes=3,
        style="classify",
    ),
    "classify-one": Workload(
        "classify-one",
        "classifier",
        "the same sentences one at a time",
        rows=128,
        tokens=48,
        passes=3,
        style="classify",
    ),
}
DEFAULT = {"decoder": "chat", "classifier": "classify"}


def workload_for(name: str | None, kind: str, positions: int, minutes: float | None = None) -> Workload:
    """The workload called `name`, fitted to a model of that kind and that many positions, and lasting `minutes`.

    A classifier is always given `classify`, unless another classifier's workload is named. Sizes that do
    not fit are scaled down in proportion, and `scaled_from` says from what.
    """
    if name is not None and name not in WORKLOADS:
        raise unknown("workload", name, WORKLOADS)
    chosen = WORKLOADS[name or DEFAULT[kind]]
    if chosen.kind != kind and kind == "decoder":
        raise UserError(
            f"workload {chosen.name} is for a {chosen.kind}, and this artifact is a {kind}; try chat"
        )
    if chosen.kind != kind:
        chosen = WORKLOADS[DEFAULT[kind]]
    if minutes is not None:
        if chosen.minutes is None:
            raise UserError(f"--minutes is for sustained, and {chosen.name} ends by itself; leave it out")
        chosen = replace(chosen, minutes=minutes)
    return fit(chosen, positions)


def fit(workload: Workload, positions: int) -> Workload:
    """`workload` itself, or the same shape made small enough for `positions`."""
    if workload.tokens is not None:
        return replace(workload, tokens=min(workload.tokens, positions))
    if workload.prompt is None or workload.generate is None:
        return workload
    wanted = workload.prompt + workload.generate
    if wanted <= positions:
        return workload
    if positions < 2:
        raise UserError(f"a model of {positions} positions has no room for a prompt and a new token")
    prompt = min(max(workload.prompt * positions // wanted, 1), positions - 1)
    asked = {"prompt": workload.prompt, "generate": workload.generate}
    return replace(workload, prompt=prompt, generate=positions - prompt, scaled_from=asked)


def prompt_ids(vocab: int, tokens: int, seed: int) -> list[int]:
    """`tokens` ids drawn from the whole vocabulary by `seed`: the work does not depend on what they say."""
    return np.random.default_rng(seed).integers(0, vocab, tokens).tolist()


def row_ids(vocab: int, rows: int, tokens: int, seed: int) -> list[list[int]]:
    """`rows` sentences of ids, their lengths even from a sixth of `tokens` to all of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(max(tokens // 6, 1), tokens + 1, rows)
    return [rng.integers(0, vocab, length).tolist() for length in lengths]
