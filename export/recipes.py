"""How to quantize: a table of frozen records. `toolchain list recipes` shows them, a manifest repeats one.

A file NAME.toml adds one of a user's own: `base = "int4"`, and the fields that differ from it.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from devices.errors import UserError, unknown
from devices.machine import exact_int8


@dataclass(frozen=True)
class Recipe:
    """Precision by part of the graph. Bits are 32 (float), 8 or 4; blocks are weights that share a scale.

    `block` is the largest block of the body's matrices and `head_block` of embedding and head: the operators
    want a power of two, and the largest one that divides the matrix's inner size is taken, as a padded
    block would store zeros.

    `kernel` multiplies the body's 8-bit matrices. `blocks`: MatMulNBits, whose activations share a scale by
    block, exact and fastest at one row. `rows`: int8 GEMM with one scale per row of activations and one per
    column of weights, twice as fast at many rows (prompts, classification), less exact. `weight_top` is the
    largest level of its weights: 127, or 63 where a processor without VNNI would saturate at more; `needs`
    names what a device must have (devices/session.py tries it). `classifier` names the recipe that takes
    this one's place for a classifier, `exact` the one for a device that is known not to saturate.
    `batch_invariant`: a token's logits are the same, but for float noise, whether it runs alone or with the
    tokens before it, which a draft needs (devices/draft.py).

    `symmetric` leaves out zero points. `search` tries several scales for each block
    and keeps the one with the least squared error. `accuracy_level` is MatMulNBits': 4 computes in int8.
    `smooth` is SmoothQuant's alpha, 0 for none; `method` is `rtn` (each weight to its nearest level) or `gptq`.
    Both want a text to calibrate on; without one nothing is smoothed, and GPTQ takes the model's own samples.
    `parts` gives single parts bits of their own, by the names in PARTS; where several hold for a matrix
    (`down` in the `first` layer), the most bits count.
    """

    name: str
    description: str
    bits: int = 32
    block: int = 128
    symmetric: bool = True
    search: bool = False
    head_bits: int = 32  # head and token embedding, which are one tensor where they are tied
    head_block: int = 128
    accuracy_level: int = 4
    kernel: str = "blocks"
    weight_top: int = 127
    needs: str | None = None
    classifier: str | None = None
    exact: str | None = None
    batch_invariant: bool = False
    smooth: float = 0.0
    method: str = "rtn"
    parts: Mapping[str, int] = field(default_factory=dict)


def precisions(recipe: Recipe) -> set[int]:
    """Bits of all weights that a graph of this recipe may hold; the tables that are only gathered from too."""
    found = {recipe.bits, recipe.head_bits, *recipe.parts.values()}
    return found | {8} if found != {32} else found


def wants_text(recipe: Recipe) -> bool:
    """Whether a recipe is better for a text to calibrate on."""
    return recipe.smooth > 0 or recipe.method != "rtn"


# What `Recipe.parts` can name: tables, matrices of every layer, and whole layers.
PARTS = ("embedding", "head", "qkv", "o", "up", "gate", "down", "first", "last")


def layer_bits(recipe: Recipe, slot: str, layer: int, layers: int) -> int:
    """Bits of the matrix `slot` (qkv, or q, k or v alone, o, up, gate, down) of layer 0 to `layers` - 1."""
    names = ["qkv" if slot in "qkv" else slot]
    names += ["first"] if layer == 0 else []
    names += ["last"] if layer == layers - 1 else []
    return max((recipe.parts[name] for name in names if name in recipe.parts), default=recipe.bits)


def table_bits(recipe: Recipe, *names: str, default: int) -> int:
    """Bits of a table that is `names`: the embedding, the head, or both where they are one tensor."""
    return max((recipe.parts[name] for name in names if name in recipe.parts), default=default)


BLOCKS, BITS, SWITCHES = (16, 32, 64, 128, 256), (32, 8, 4), ("symmetric", "search", "batch_invariant")
# Values that a field of a user's own recipe can have.
CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": BITS,
    "head_bits": BITS,
    "block": BLOCKS,
    "head_block": BLOCKS,
    "kernel": ("blocks", "rows"),
    "weight_top": (63, 127),
    "needs": ("vnni",),
    "accuracy_level": (0, 1, 4),
    "method": ("rtn", "gptq"),
    **dict.fromkeys(SWITCHES, (True, False)),
}

RECIPES: dict[str, Recipe] = {
    "fp32": Recipe("fp32", "float weights as they are; the reference", batch_invariant=True),
    "int8": Recipe(
        "int8",
        "8-bit weights and activations in blocks; a classifier gets int8-dynamic",
        bits=8,
        block=64,  # larger ones sum an odd row in another order: a row would depend on its neighbours
        head_bits=8,
        head_block=64,
        classifier="int8-dynamic",
    ),
    # By rows one large channel takes the precision of all others in the row, and smoothing pays where there is a
    # text for it. In blocks (int8) it shares a scale with 63 others only: smoothing bought nothing that a gate sees.
    "int8-dynamic": Recipe(
        "int8-dynamic",
        "int8 by rows: prompts and classification twice as fast, less exact; 7-bit weights; give it --calibrate",
        bits=8,
        head_bits=8,
        kernel="rows",
        weight_top=63,
        exact="int8-vnni",
        smooth=0.5,
    ),
    "int8-vnni": Recipe(
        "int8-vnni",
        "int8-dynamic with 8-bit weights, for processors with VNNI and for ARM",
        bits=8,
        head_bits=8,
        kernel="rows",
        needs="vnni",
        smooth=0.5,
    ),
    # Four bits bend a model enough that offsets and a search for each scale pay; embedding and head, whose
    # errors reach the logits undamped, stay at eight.
    "int4": Recipe(
        "int4",
        "4-bit weights in blocks of 32 with zero points, scales searched; embedding and head 8-bit",
        bits=4,
        block=32,
        symmetric=False,
        search=True,
        head_bits=8,
    ),
    "int4-gptq": Recipe(
        "int4-gptq",
        "int4, each error made up for in the weights that follow (GPTQ): better, in minutes instead of seconds",
        bits=4,
        block=32,
        symmetric=False,
        search=True,
        head_bits=8,
        method="gptq",
    ),
    # Scales are stored in 32 bits: large blocks in the body, where GPTQ makes up for them, and smaller ones in the
    # vocabulary keep the file below 1.15 times its 4-bit levels. What it costs is argmax agreement.
    "int4-all": Recipe(
        "int4-all",
        "int4-gptq with embedding and head in 4 bits, too, and larger blocks: the smallest, least exact",
        bits=4,
        block=128,
        symmetric=False,
        search=True,
        head_bits=4,
        head_block=64,
        method="gptq",
    ),
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, or that of the file `name`.toml; UserError with the near ones for neither."""
    if name.endswith(".toml"):
        return _read(Path(name))
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def _read(path: Path) -> Recipe:
    """A recipe of a user's own: `base`, a recipe's name (default int8), and the fields that differ from it.

    UserError for a file that cannot be read, a key that is no field and a value that is none of its kind.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no recipe ({error}); see export/recipes.py for the fields") from None
    base = find_recipe(str(found.pop("base", "int8")))
    known = {field.name: getattr(base, field.name) for field in fields(Recipe)}
    for key, value in found.items():
        if key not in known:
            raise unknown("recipe field", key, known)
        _check(path, key, value)
    given = {
        "name": path.stem,
        "description": f"{base.name} with changes",
        "classifier": None,
        "exact": None,
        **found,
    }
    return replace(base, **given)


def _check(path: Path, key: str, value: Any) -> None:
    """UserError for a value that field `key` cannot have."""
    if key == "parts":
        if not isinstance(value, dict):
            raise UserError(f"{path}: parts must be a table of bits by part, found {value!r}")
        for part, bits in value.items():
            if part not in PARTS:
                raise unknown("part", part, PARTS)
            _check(path, "bits", bits)
    elif key in CHOICES and (value not in CHOICES[key] or isinstance(value, bool) is not (key in SWITCHES)):
        raise UserError(f"{path}: {key} is {value!r}; it must be one of {', '.join(map(str, CHOICES[key]))}")
    elif key == "smooth" and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1
    ):
        raise UserError(f"{path}: smooth is {value!r}; it must be a number from 0 to below 1")
    elif key in ("name", "description") and not isinstance(value, str):
        raise UserError(f"{path}: {key} must be a text, found {value!r}")


def recipe_for(name: str, kind: str, isa: Collection[str] | None = None) -> Recipe:
    """The recipe `name` means for a `decoder` or `classifier` on a device with the instruction sets `isa`.

    None where they are not known: what runs everywhere is chosen. UserError for a recipe that the device cannot run.
    """
    chosen = find_recipe(name)
    chosen = find_recipe(chosen.classifier) if kind == "classifier" and chosen.classifier else chosen
    exact = isa is not None and exact_int8(isa)
    if chosen.needs and isa is not None and not exact:
        raise UserError(f"recipe {chosen.name}: the device has no VNNI and would saturate; use int8-dynamic")
    return find_recipe(chosen.exact) if exact and chosen.exact else chosen


def caution(recipe: Recipe, isa: Collection[str]) -> str | None:
    """What to think of before a decoder of `recipe` goes to a device with these instruction sets, or nothing.

    Counted in docs/arm.md: ONNX Runtime's MatMulNBits has no integer kernel for ARM without dot product.
    """
    if "asimd" not in isa or "asimddp" in isa or recipe.bits == 32 or recipe.kernel != "blocks":
        return None
    return (
        f"no dot product there: {recipe.name} saves memory, and a generated token takes several times fp32's "
        "instructions; --recipe int8-vnni, by rows, takes fewer (docs/arm.md)"
    )
