import pytest

from devices.errors import UserError
from export.recipes import RECIPES, caution, find_recipe, recipe_for


def test_a_file_adds_a_recipe(tmp_path):
    """A TOML file is a recipe: its base with the fields it changes, called as the file is."""
    path = tmp_path / "careful.toml"
    path.write_text('base = "int4"\nhead_bits = 4\nsymmetric = true\n[parts]\ndown = 8\n')
    found = find_recipe(str(path))
    assert (found.name, found.bits, found.head_bits, found.symmetric) == ("careful", 4, 4, True)
    assert found.parts == {"down": 8} and found.block == RECIPES["int4"].block


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bit = 8", "did you mean bits"),
        ("bits = 7", "one of 32, 8, 4"),
        ("bits = true", "one of 32, 8, 4"),
        ("symmetric = 1", "one of True, False"),
        ("block = 48", "one of 16, 32"),
        ("kernel = 'fast'", "one of blocks, rows"),
        ("base = 'int9'", "int8"),
        ("method = 'hqq'", "one of rtn, gptq"),
        ("smooth = 2", "below 1"),
        ("parts = 8", "a table"),
        ("[parts]\ndwon = 8", "down"),
        ("[parts]\ndown = 5", "one of 32, 8, 4"),
        ("name = 3", "a text"),
        ("bits =", "no recipe"),
        (None, "no recipe"),
    ],
)
def test_what_is_no_recipe_is_one_line(tmp_path, text, said):
    """A file that is missing, broken or says what no recipe can is refused, with what would do."""
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        find_recipe(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_classifier_gets_the_recipe_for_classifiers():
    """int8 means the kernel for many rows where a classifier is exported, and the one for one row elsewhere."""
    assert recipe_for("int8", "decoder").kernel == "blocks"
    assert recipe_for("int8", "classifier").kernel == "rows"
    assert recipe_for("int8", "classifier").weight_top == 63  # right on any processor
    assert recipe_for("fp32", "classifier") == RECIPES["fp32"]


VNNI, AVX2, ARM = ["avx2", "avx512f", "avx512_vnni"], ["avx2", "fma"], ["asimd"]


@pytest.mark.parametrize(
    ("name", "kind", "isa", "chosen"),
    [
        ("int8", "classifier", VNNI, "int8-vnni"),
        ("int8", "classifier", ARM, "int8-vnni"),
        ("int8", "classifier", AVX2, "int8-dynamic"),
        ("int8", "classifier", [], "int8-dynamic"),
        ("int8-dynamic", "decoder", ARM, "int8-vnni"),
        ("int8", "decoder", VNNI, "int8"),
        ("int4", "classifier", VNNI, "int4"),
    ],
)
def test_the_target_decides_between_two_kernels(name, kind, isa, chosen):
    """8-bit weights where the device does not saturate, 7-bit where it does or nothing is known; else the same."""
    assert recipe_for(name, kind, isa).name == chosen


def test_a_recipe_that_the_target_cannot_run_is_refused():
    """8-bit weights for a processor that saturates: one line that names the recipe for it."""
    with pytest.raises(UserError, match="would saturate; use int8-dynamic"):
        recipe_for("int8-vnni", "decoder", AVX2)
    assert recipe_for("int8-vnni", "decoder").name == "int8-vnni"  # nothing is known: the device finds out


def test_a_recipe_of_ones_own_stays_as_it_is(tmp_path):
    """What a file says is not exchanged for a shipped recipe, whatever the target."""
    path = tmp_path / "mine.toml"
    path.write_text('base = "int8-dynamic"\nsmooth = 0.3\n')
    assert recipe_for(str(path), "classifier", VNNI).name == "mine"


def test_a_target_without_dot_product_is_told_of():
    """Blocks of integers on such an ARM processor are worth a line; anything else is not."""
    assert "int8-vnni" in (caution(RECIPES["int8"], ARM) or "")
    assert "int4 saves memory" in (caution(RECIPES["int4"], ARM) or "")
    for name, isa in (("int8-vnni", ARM), ("fp32", ARM), ("int8", [*ARM, "asimddp"]), ("int8", AVX2)):
        assert caution(RECIPES[name], isa) is None
