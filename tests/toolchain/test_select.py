"""Choosing layers: the paper's table, every shape, and what is refused."""

import pytest

from devices.errors import UserError
from toolchain.compress.select import SELECTORS, choose, explicit

TABLE = {
    ("pseudo-uniform", 12): [0, 2, 4, 7, 9, 11],
    ("pseudo-uniform", 24): [0, 4, 8, 15, 19, 23],
    ("pseudo-uniform", 36): [0, 6, 12, 23, 29, 35],
    ("pseudo-uniform", 48): [0, 8, 16, 31, 39, 47],
    ("uniform", 12): [0, 2, 4, 6, 8, 10],
    ("uniform", 24): [0, 4, 8, 12, 16, 20],
    ("uniform", 36): [0, 7, 14, 21, 28, 35],
    ("uniform", 48): [0, 9, 18, 27, 36, 45],
    ("uniform-2", 24): [0, 5, 10, 15, 20, 22],  # the paper prints 23 last
    ("uniform-2", 36): [0, 8, 16, 24, 32, 34],
    ("uniform-2", 48): [0, 10, 20, 30, 40, 46],
    ("bottom-half", 12): [0, 1, 2, 3, 4, 5],
    ("bottom-half", 24): [0, 2, 4, 6, 8, 11],  # the paper prints 10 last
    ("bottom-half", 36): [0, 3, 6, 10, 13, 17],  # the paper prints 0,2,4,7,9,12
    ("bottom-half", 48): [0, 4, 9, 13, 18, 23],
    ("top-half", 12): [6, 7, 8, 9, 10, 11],
    ("top-half", 24): [12, 14, 16, 18, 20, 23],
    ("top-half", 36): [18, 21, 24, 28, 31, 35],  # the paper prints 13,17,21,26,30,35
    ("top-half", 48): [24, 28, 33, 37, 42, 47],
    ("first", 12): [0, 1, 2, 3, 4, 5],
}


@pytest.mark.parametrize(("name", "layers"), TABLE)
def test_paper_table(name: str, layers: int) -> None:
    """Six layers kept: the paper's cells, or the rule where the paper's own cell follows none."""
    assert choose(name, layers, 6) == TABLE[name, layers]


@pytest.mark.parametrize("name", SELECTORS)
def test_every_shape_is_increasing_and_in_range_or_refused(name: str) -> None:
    """For all 1 <= k <= n <= 50: k strictly increasing indices of the teacher, or a UserError."""
    for n in range(1, 51):
        for k in range(1, n + 1):
            try:
                kept = choose(name, n, k, seed=3)
            except UserError:
                assert name in ("uniform-2", "bottom-half", "top-half"), (n, k)
                continue
            assert len(kept) == k
            assert kept == sorted(set(kept))
            assert 0 <= kept[0] <= kept[-1] < n


@pytest.mark.parametrize("name", ["bottom-half", "top-half"])
def test_a_half_has_an_answer_up_to_its_size(name: str) -> None:
    """The half strategies answer for every k up to floor(n/2), and refuse more."""
    for n in range(2, 40):
        assert len(choose(name, n, n // 2)) == n // 2
        with pytest.raises(UserError):
            choose(name, n, n // 2 + 1)


def test_odd_number_of_layers() -> None:
    """With an odd k the lower end gets the extra layer; k = 1 keeps the first; k = n keeps all."""
    assert choose("pseudo-uniform", 12, 5) == [0, 2, 4, 9, 11]
    assert choose("pseudo-uniform", 30, 15) == [*range(0, 16, 2), *range(17, 30, 2)]
    assert choose("pseudo-uniform", 12, 1) == [0]
    assert choose("pseudo-uniform", 7, 7) == list(range(7))


def test_random_is_the_seed_s() -> None:
    """The same seed draws the same layers, another seed others."""
    assert choose("random", 48, 6, seed=1) == choose("random", 48, 6, seed=1)
    assert len({tuple(choose("random", 48, 6, seed=s)) for s in range(20)}) > 15


@pytest.mark.parametrize(
    ("name", "layers", "k", "says"),
    [
        ("pseudo-unform", 12, 6, "did you mean pseudo-uniform"),
        ("zebra", 12, 6, "known: pseudo-uniform, uniform"),
        ("", 12, 6, "unknown strategy ''"),
        ("uniform", 12, 13, "12 layers; choose 1 to 12"),
        ("uniform", 12, 0, "choose 1 to 12"),
        ("uniform", 12, -1, "choose 1 to 12"),
        ("uniform-2", 12, 6, "0,3,6,9,10,10"),
        ("uniform-2", 1, 1, "choose fewer --layers or another strategy"),
        ("bottom-half", 12, 7, "without repeating"),
        ("top-half", 12, 12, "without repeating"),
    ],
)
def test_refused(name: str, layers: int, k: int, says: str) -> None:
    """An unknown name, a k the teacher does not have, and a strategy without an answer: one line each."""
    with pytest.raises(UserError) as caught:
        choose(name, layers, k)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kept"),
    [("0,2,4", [0, 2, 4]), (" 0 , 11 ", [0, 11]), ("4,2,0", [0, 2, 4]), ("5", [5])],
)
def test_explicit(text: str, kept: list[int]) -> None:
    """Named layers are kept in the teacher's order, whatever the order they are named in."""
    assert explicit(text, 12) == kept


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no layer number"),
        ("0,,2", "'' is no layer number"),
        ("0,2,", "'' is no layer number"),
        ("zero", "'zero' is no layer number"),
        ("1.5", "'1.5' is no layer number"),
        ("-1", "'-1' is no layer number"),
        ("0-5", "'0-5' is no layer number"),
        ("٣", "is no layer number"),
        ("12", "no layer 12; the teacher's are 0 to 11"),
        ("0,99999999999999999999", "no layer 99999999999999999999"),
        ("0,2,2", "layer 2 stands there twice"),
    ],
)
def test_explicit_refused(text: str, says: str) -> None:
    """Not a number, out of range, twice: one line that names the offender."""
    with pytest.raises(UserError) as caught:
        explicit(text, 12)
    assert says in str(caught.value)
