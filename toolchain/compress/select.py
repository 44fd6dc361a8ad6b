"""Which of the teacher's layers the student keeps: pure integer functions, named as in the paper.

The strategies and their table are those of Li et al., "A Short Study on Compressing Decoder-Based Language
Models" (arXiv 2110.08460). Pseudo-uniform and uniform give every cell of it. A few printed cells follow no
rule that also gives their neighbours: bottom-half at 24 and 36 layers, top-half at 36 and uniform-2 at 24;
there the rule is kept and the cell is not. `random` draws its own layers. See docs/adr/0002.

Strategies that measure (MEASURED) are integer functions as well: what they choose by is given to them as a
function from layers to scores. toolchain/compress/score.py has the ones that run the teacher.
"""

import itertools
import random
from collections.abc import Callable, Sequence

from devices.errors import UserError, unknown


def pseudo_uniform(n: int, k: int, seed: int = 0) -> list[int]:
    """From both ends (0 and n-1) inwards by floor(n/k); the lower end gets the extra layer of an odd k."""
    step = n // k
    lower = [i * step for i in range(k - k // 2)]
    upper = [n - 1 - i * step for i in range(k // 2)]
    return lower + upper[::-1]


def uniform(n: int, k: int, seed: int = 0) -> list[int]:
    """From 0 upwards by floor((n-1)/(k-1)); layer 0 alone for k = 1."""
    step = _stride(n, k)
    return [i * step for i in range(k)]


def uniform_2(n: int, k: int, seed: int = 0) -> list[int]:
    """Uniform's step + 1, never beyond n-2: the last but one layer is always the last kept."""
    if k == 1:
        return [n - 2]
    step = _stride(n, k) + 1
    return [min(i * step, n - 2) for i in range(k)]


def bottom_half(n: int, k: int, seed: int = 0) -> list[int]:
    """Spread over the lower floor(n/2) layers = h, both ends included: floor(i(h-1)/(k-1))."""
    h = n // 2
    return [i * (h - 1) // max(k - 1, 1) for i in range(k)]


def top_half(n: int, k: int, seed: int = 0) -> list[int]:
    """Bottom-half, moved up by n-h: the upper floor(n/2) layers."""
    return [i + n - n // 2 for i in bottom_half(n, k)]


def random_layers(n: int, k: int, seed: int = 0) -> list[int]:
    """`k` layers drawn without replacement with `seed`, in the teacher's order."""
    return sorted(random.Random(seed).sample(range(n), k))


def first(n: int, k: int, seed: int = 0) -> list[int]:
    """The lowest k layers."""
    return list(range(k))


def _stride(n: int, k: int) -> int:
    """Uniform's step, floor((n-1)/(k-1)); 0 for the one layer that takes no step."""
    return (n - 1) // (k - 1) if k > 1 else 0


# name -> (teacher's layers, layers to keep, seed) -> indices; only `random` looks at the seed.
SELECTORS: dict[str, Callable[[int, int, int], list[int]]] = {
    "pseudo-uniform": pseudo_uniform,
    "uniform": uniform,
    "uniform-2": uniform_2,
    "bottom-half": bottom_half,
    "top-half": top_half,
    "random": random_layers,
    "first": first,
}

# score(layers, drop) -> for each run of `drop` neighbours in `layers`, from its first on, how much is lost
# when that run is left out: len(layers) - drop + 1 figures, the lowest best.
Score = Callable[[list[int], int], Sequence[float]]


def lowest(n: int, k: int, score: Score) -> list[int]:
    """Drops the n-k layers of the lowest scores, all scored once; of equal ones the deepest."""
    losses = score(list(range(n)), 1)
    dropped = sorted(range(n), key=lambda i: (losses[i], -i))[: n - k]
    return [i for i in range(n) if i not in dropped]


def contiguous(n: int, k: int, score: Score) -> list[int]:
    """Drops the one run of n-k neighbours of the lowest score; of equal ones the deepest."""
    losses = score(list(range(n)), n - k)
    start = min(range(k + 1), key=lambda i: (losses[i], -i))
    return [*range(start), *range(start + n - k, n)]


def greedy(n: int, k: int, score: Score) -> list[int]:
    """Drops the layer of the lowest score (of equal ones the deepest), scores what is left, and so on."""
    kept = list(range(n))
    while len(kept) > k:
        losses = score(list(kept), 1)
        del kept[min(range(len(kept)), key=lambda i: (losses[i], -i))]
    return kept


# name -> how it chooses; what it measures stands under the same name in score.py's SCORERS.
MEASURED: dict[str, Callable[[int, int, Score], list[int]]] = {
    "block-influence": lowest,
    "angular": contiguous,
    "perplexity": greedy,
}


def choose(name: str, layers: int, k: int, seed: int | None = None) -> list[int]:
    """The `k` layers of `layers` that strategy `name` keeps, 0-indexed and increasing.

    UserError for an unknown name, a `k` outside 1..layers, and where the strategy has no answer (the half
    strategies with more than half of the layers, uniform-2 where its indices repeat).
    """
    refuse_shape(name, layers, k)
    chosen = SELECTORS[name](layers, k, seed or 0)
    increasing = all(a < b for a, b in itertools.pairwise(chosen))
    if chosen[0] < 0 or chosen[-1] >= layers or not increasing:
        raise UserError(
            f"--select {name}: cannot keep {k} of {layers} layers without repeating or leaving them "
            f"({','.join(map(str, chosen))}); choose fewer --layers or another strategy"
        )
    return chosen


def choose_measured(name: str, layers: int, k: int, score: Score) -> list[int]:
    """The `k` layers of `layers` that strategy `name` of MEASURED keeps by `score`, 0-indexed and increasing.

    Nothing is scored where nothing is dropped. UserError for an unknown name and a `k` outside 1..layers.
    """
    refuse_shape(name, layers, k)
    return MEASURED[name](layers, k, score) if k < layers else list(range(layers))


def refuse_shape(name: str, layers: int, k: int) -> None:
    """UserError for an unknown strategy and for a `k` outside 1..layers."""
    if name not in SELECTORS and name not in MEASURED:
        raise unknown("strategy", name, [*SELECTORS, *MEASURED])
    if not 1 <= k <= layers:
        raise UserError(f"--layers {k}: the teacher has {layers} layers; choose 1 to {layers}")


def explicit(text: str, layers: int) -> list[int]:
    """The layers named in `text` ("0,2,4"; any order, returned increasing).

    UserError for something that is no number, a number twice, or one outside 0..layers-1.
    """
    kept: list[int] = []
    for word in text.split(","):
        digits = word.strip()
        if not (digits.isascii() and digits.isdigit()):
            raise UserError(f"--keep {text}: '{digits}' is no layer number; write them like 0,2,4")
        index = int(digits) if len(digits) < 10 else layers
        if index >= layers:
            raise UserError(f"--keep {text}: no layer {digits}; the teacher's are 0 to {layers - 1}")
        if index in kept:
            raise UserError(f"--keep {text}: layer {index} stands there twice; name each once")
        kept.append(index)
    return sorted(kept)
