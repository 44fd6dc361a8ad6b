"""A source of weights that knows what its products read: smoothing, and second moments for GPTQ.

SmoothQuant (Xiao et al. 2023, https://arxiv.org/abs/2211.10438): a few channels of a product's input are far
larger than the rest and cost all the others precision. Each channel is divided by a factor where the input is
made and its column of the matrix multiplied by it, which changes nothing in exact arithmetic. The factors go
into weights that are there anyway: the norm before qkv and gate/up, the rows of v before o, and of up before
down where the activation multiplies it (after GELU there is no such place).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from export.architecture import Architecture, layer_tensors
from export.calibrate import SLOTS, Inputs, layer_inputs
from export.checkpoint import Checkpoint
from export.recipes import Recipe
from export.weights import READS, Source

TINY = 1e-5  # channels that are never used still need a factor


def calibrated(
    checkpoint: Checkpoint, arch: Architecture, recipe: Recipe, ids: np.ndarray
) -> Callable[..., Source]:
    """What makes the source for a graph by `recipe`, calibrated on `ids` int64 [rows, length]."""
    wanted = [slot for slot in SLOTS if slot != "head"] if recipe.method == "gptq" else []

    def head() -> np.ndarray | None:
        *_, last = layer_inputs(checkpoint, arch, ids, moments=["head"] if wanted else [])
        return last["head"].moment

    return partial(Calibrated, stream=layer_inputs(checkpoint, arch, ids, moments=wanted), head=head)


@dataclass(frozen=True)
class Calibrated(Source):
    """A source whose weights are smoothed by `recipe.smooth` and whose products' second moments are known.

    `stream`: the statistics of each layer, then the head's, as `export.calibrate.layer_inputs` yields them.
    A graph asks for its layers in order, so that the last two are all that is kept. `head` gives the head's
    second moment by a run of its own: a tied head is stored before the layers.
    """

    stream: Iterator[dict[str, Inputs]] = field(kw_only=True)
    head: Callable[[], np.ndarray | None] = field(kw_only=True)
    kept: dict[int, dict[str, Inputs]] = field(default_factory=dict, kw_only=True)
    factors: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, kw_only=True)

    def matrix(self, layer: int, slot: str) -> np.ndarray:
        """As `Source.matrix`, smoothed."""
        weight = super().matrix(layer, slot)
        if not self.recipe.smooth or not self._stored(layer, f"{slot}.weight"):
            return weight  # q, k and v joined have been smoothed one by one
        rows, columns = self._rows(layer, slot), self._factors(layer, READS[slot])
        weight = weight * columns
        return weight if rows is None else weight / rows[:, None]

    def vector(self, layer: int, slot: str) -> np.ndarray | None:
        """As `Source.vector`, smoothed."""
        array = super().vector(layer, slot)
        if array is None or not self.recipe.smooth or not self._stored(layer, slot):
            return array
        rows = self._rows(layer, slot.split(".")[0])
        return array if rows is None else array / rows

    def moment(self, layer: int, slot: str) -> np.ndarray | None:
        """float64 [in, in], the sum of x x^T of what a layer's matrix, or (slot `head`) the head, reads."""
        if slot == "head":
            return self.head()
        found = self._inputs(layer, READS[slot]).moment
        if found is None or not self.recipe.smooth:
            return found
        factors = self._factors(layer, READS[slot])
        return found / np.outer(factors, factors)

    def _stored(self, layer: int, slot: str) -> bool:
        return slot in layer_tensors(self.arch, layer)

    def _inputs(self, layer: int, slot: str) -> Inputs:
        while layer not in self.kept:
            following = max(self.kept, default=-1) + 1
            self.kept.pop(following - 2, None)
            self.kept[following] = next(self.stream)
        return self.kept[layer][slot]

    def _rows(self, layer: int, slot: str) -> np.ndarray | None:
        """What the outputs of a norm or a matrix are divided by, float32 [out]; None for nothing."""
        if slot in ("norm1", "norm2"):
            return self._factors(layer, {"norm1": "qkv", "norm2": "up"}[slot])
        if slot == "up" and "gate" in self.arch.family.layer:
            return self._factors(layer, "down")
        if slot not in ("v", "qkv"):
            return None
        heads = self._factors(layer, "o").reshape(self.arch.kv_heads, -1, self.arch.head_dim)
        values = heads[:, 0].reshape(-1)
        if slot == "v":
            return values
        return np.concatenate([np.ones(self.arch.sizes["qkv"] - len(values), np.float32), values])

    def _factors(self, layer: int, slot: str) -> np.ndarray:
        """The factors of what the products of `slot` (qkv, o, up, down) read, float32 [in], mean log 0."""
        if (layer, slot) not in self.factors:
            self.factors[layer, slot] = self._balance(layer, slot)
        return self.factors[layer, slot]

    def _balance(self, layer: int, slot: str) -> np.ndarray:
        """largest input ** alpha / largest weight ** (1 - alpha) of each channel, normalised."""
        inputs = self._inputs(layer, slot).largest
        if slot == "down" and "gate" not in self.arch.family.layer:
            return np.ones_like(inputs)
        readers = [name for name, read in READS.items() if read == slot]
        readers = [name for name in readers if self._stored(layer, f"{name}.weight")]
        weights = np.max([np.abs(Source.matrix(self, layer, name)).max(0) for name in readers], 0)
        both = np.maximum([inputs, weights], TINY)
        if slot == "o":  # heads that share a value head share its factors
            shape = (2, self.arch.kv_heads, -1, self.arch.head_dim)
            groups = both.reshape(shape)
            both = np.broadcast_to(groups.max(2, keepdims=True), groups.shape).reshape(both.shape)
        alpha = self.recipe.smooth
        logs = alpha * np.log(both[0]) - (1 - alpha) * np.log(both[1])
        return np.exp(logs - logs.mean()).astype(np.float32)
