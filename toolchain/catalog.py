"""What can be named on the command line, by kind: each registry's names with a line about each."""

from collections.abc import Callable

from devices.errors import unknown


def first_line(function: Callable) -> str:
    """The first sentence of a function's docstring, on one line."""
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())


def selectors() -> dict[str, str]:
    """Which of the teacher's layers a student keeps."""
    from toolchain.compress.score import SCORERS
    from toolchain.compress.select import MEASURED, SELECTORS

    fixed = {name: first_line(function) for name, function in SELECTORS.items()}
    return fixed | {
        name: f"{first_line(choose)} Score: {first_line(SCORERS[name])}" for name, choose in MEASURED.items()
    }


def objectives() -> dict[str, str]:
    """What a student is distilled towards."""
    from toolchain.compress.objectives import OBJECTIVES

    return {name: objective.description for name, objective in OBJECTIVES.items()}


def recipes() -> dict[str, str]:
    """How an artifact's weights are quantized."""
    from export.recipes import RECIPES

    return {name: recipe.description for name, recipe in RECIPES.items()}


def workloads() -> dict[str, str]:
    """What a benchmark measures."""
    from bench.workloads import WORKLOADS

    return {name: f"{workload.kind}: {workload.description}" for name, workload in WORKLOADS.items()}


def devices() -> dict[str, str]:
    """Where a benchmark runs."""
    from devices import profiles

    return {one["name"]: one["description"] for one in profiles.listed()}


def tasks() -> dict[str, str]:
    """Labelled tasks to fine-tune and evaluate on."""
    import tomllib

    from toolchain.glue.docs_tasks import TASKS
    from toolchain.glue.tasks import BUILT_IN

    made = {name: f"{about[0]} (made from the standard library)" for name, about in TASKS.items()}
    shipped = {
        file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in sorted(BUILT_IN.glob("*.toml"))
    }
    return made | {name: table.get("description", "") for name, table in shipped.items()}


def methods() -> dict[str, str]:
    """How a model is fine-tuned on a task."""
    from toolchain.glue.methods import METHODS

    return {name: method.description for name, method in METHODS.items()}


def rules() -> dict[str, str]:
    """What cleaning a corpus drops."""
    from toolchain.corpus.clean.rules import RULES, SETS

    return {name: f"a set: {', '.join(rules)}" for name, rules in SETS.items()} | RULES


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "selectors": selectors,
    "objectives": objectives,
    "recipes": recipes,
    "workloads": workloads,
    "devices": devices,
    "tasks": tasks,
    "methods": methods,
    "rules": rules,
}


def entries(kind: str | None = None) -> dict[str, str]:
    """Names of one kind, or the kinds themselves, each with one line; UserError for an unknown kind."""
    if kind is None:
        return {name: first_line(function) for name, function in KINDS.items()}
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return KINDS[kind]()
