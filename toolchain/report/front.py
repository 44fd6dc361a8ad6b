"""The Pareto front: what no other choice beats in cost and quality at once."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other dominates, cheapest first; both coordinates count as costs.

    A point is dominated if another is no worse in both coordinates and better in one. Equal points stand or
    fall together. Sort and sweep, O(n log n).
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[int] = []
    for i in order:
        if not kept or points[i] == points[kept[-1]] or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept
