"""What cleaning drops: rules by name, each a line of plain words, and those on single lines as functions."""

import re
from collections.abc import Callable

from devices.errors import UserError, unknown

MIN_WORDS = 5  # the paper says "short" and gives no number
MAX_SYMBOLS = 0.1  # of a line's characters
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--|&(?:[A-Za-z]{2,8}|#[0-9]{1,6});")
SYMBOL = re.compile(r"[^\w\s]|_")


def html(line: str) -> bool:
    """Whether a line holds a tag, a comment or an entity of HTML."""
    return TAG.search(line) is not None


def short(line: str) -> bool:
    """Whether a line has fewer than MIN_WORDS words."""
    return len(line.split(maxsplit=MIN_WORDS - 1)) < MIN_WORDS


def symbols(line: str) -> bool:
    """Whether more than a tenth of a line's characters are no letter, digit or space."""
    return len(SYMBOL.findall(line)) > MAX_SYMBOLS * len(line)


def key(line: str) -> str:
    """What lines that count as duplicates share: length without punctuation, first four and last four words."""
    plain = SYMBOL.sub("", line)
    words = plain.split()
    return f"{len(plain)} {' '.join(words[:4])} {' '.join(words[-4:])}"


# Rules that look at one line, in the order in which they are asked; the first that says yes drops it.
LINE_RULES: dict[str, Callable[[str], bool]] = {"html": html, "short": short, "symbols": symbols}
DUPLICATES, NEAR_DUPLICATES = "duplicates", "near-duplicates"

# In the order in which they are applied. Li et al. (arXiv 2110.08460) are the paper's; the rest is datatrove's.
RULES: dict[str, str] = {
    "html": "lines with an HTML tag, comment or entity",
    "short": f"lines of fewer than {MIN_WORDS} words",
    "symbols": f"lines with more than {100 * MAX_SYMBOLS:.0f} % of characters that are no letter, digit or space",
    "repetition": "documents that repeat lines, paragraphs or n-grams (Gopher, arXiv 2112.11446, table A1)",
    "gopher-quality": "documents by length, word length, symbols, bullets and stop words (Gopher, same, A1.1)",
    "fineweb-quality": "documents by line ends, short and repeated lines (FineWeb, arXiv 2406.17557)",
    DUPLICATES: "lines seen before: same length without punctuation, same first and last four words",
    NEAR_DUPLICATES: "documents like another: MinHash of word 5-grams, 14 buckets of 8 (FineWeb's)",
}
SETS: dict[str, tuple[str, ...]] = {
    "paper": ("html", "short", "symbols", DUPLICATES),
    "fineweb": ("repetition", "gopher-quality", "fineweb-quality", NEAR_DUPLICATES),
}


def parse(text: str) -> tuple[str, ...]:
    """The rules that `text` names ("paper", "paper,near-duplicates"), each once, in the order of RULES.

    UserError for an unknown name, and for none.
    """
    chosen: set[str] = set()
    for name in filter(None, (word.strip() for word in text.split(","))):
        if name not in RULES and name not in SETS:
            raise unknown("rule", name, [*SETS, *RULES])
        chosen.update(SETS.get(name, (name,)))
    if not chosen:
        raise UserError(f"--rules '{text}': names none; choose of {', '.join([*SETS, *RULES])}")
    return tuple(rule for rule in RULES if rule in chosen)
