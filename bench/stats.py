"""Samples and what is said about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(samples: Sequence[float] | None) -> dict[str, Any] | None:
    """Median, 95th and 99th percentile (linear interpolation) beside the raw samples; null without any."""
    if not samples:
        return None
    median, p95, p99 = (float(value) for value in np.percentile(samples, [50, 95, 99]))
    return {"median": median, "p95": p95, "p99": p99, "samples": list(samples)}
