"""The two ways a command ends badly on purpose, and how an unknown name is answered."""

from collections.abc import Iterable


class UserError(Exception):
    """The user can mend it: one line saying what, where and what to do. Exit code 2."""


class CheckFailed(Exception):  # noqa: N818 - a check that did not hold is an outcome, not an error
    """A promise about numbers did not hold (parity, a gate, a budget). One line. Exit code 1."""


def install(extra: str) -> str:
    """The command that installs an extra; from the checkout, since the name may be another's in an index."""
    return "in the checkout: pip install " + ("." if extra == "base" else f"'.[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a `name` that is no `kind` we know, with the nearest names first."""
    import difflib  # only where something was misspelt

    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return UserError(f"unknown {kind} '{name}': {hint}")
