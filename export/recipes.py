"""How to quantize: a table of frozen records. `toolchain list recipes` shows them, a manifest repeats one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from devices.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """Precision by part of the graph. Bits are 32 (float), 8 or 4; blocks are weights that share a scale.

    `block` is the largest block of the body's matrices and `head_block` of embedding and head: the operators
    want a power of two, and the largest one that divides the matrix's inner size is taken, as a padded
    block would store zeros. `symmetric` leaves out zero points. `search` tries several scales for each block
    and keeps the one with the least squared error. `accuracy_level` is MatMulNBits': 4 computes in int8.
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
    parts: Mapping[str, int] = field(default_factory=dict)


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


def precisions(recipe: Recipe) -> set[int]:
    """Bits of all weights that a graph of this recipe may hold; the tables that are only gathered from too."""
    found = {recipe.bits, recipe.head_bits, *recipe.parts.values()}
    return found | {8} if found != {32} else found


RECIPES: dict[str, Recipe] = {
    "fp32": Recipe("fp32", "float weights as they are; the reference"),
    "int8": Recipe(
        "int8", "8-bit weights in blocks, int8 arithmetic, one scale per block", bits=8, head_bits=8
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
}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`; UserError with the near ones where there is none."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
