"""The roofline of generating: a token cannot take less time than reading what it needs from memory does.

Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model". Batch 1 has one multiply
and add for each weight, far below what a processor does per byte it reads, so memory is the roof.
"""

from typing import Any

from bench.workloads import Workload
from devices.artifact import Artifact
from devices.errors import UserError
from devices.files import read_json

FLOAT = 4  # bytes of a cached key or value
# Positions are looked up, not multiplied with: a model that adds a learned table of them reads one row of it.
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo")
TIED = ("gpt2", "opt", "gpt_neo")  # the default of tie_word_embeddings where a config leaves it out


def bytes_per_token(artifact: Artifact, positions: float) -> dict[str, int] | None:
    """`weights` and `cache` that a step reads with `positions` in the cache; null where the manifest tells too little.

    Weights are the bytes that the manifest says are stored, scales and zero points among them, less the tables
    of which a step reads a row: the embedding of an untied model, and learned positions.
    """
    stored = artifact.manifest.get("bytes")
    if artifact.kind != "decoder" or not isinstance(stored, dict) or not stored:
        return None
    model = artifact.model
    try:
        config = read_json(artifact.path / "config.json", "the model's configuration")
    except UserError:
        config = {}
    looked_up = model["hidden"] * model["positions"] if model["model_type"] in LEARNED_POSITIONS else 0
    if not config.get("tie_word_embeddings", model["model_type"] in TIED):
        looked_up += model["hidden"] * model["vocab"]
    each = FLOAT if stored.get("float32", 0) > sum(stored.values()) / 2 else 1
    cache = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * FLOAT * positions
    return {"weights": max(sum(stored.values()) - looked_up * each, 0), "cache": round(cache)}


def of(
    artifact: Artifact, plan: Workload, token_s: dict[str, Any] | None, bandwidth: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Bytes a token at the workload's mean position, the bandwidth, and the `share` of it that was reached.

    `in_cache`: all of it fits the processor's largest cache, and the bandwidth of memory is then no roof: the
    share may exceed 1. Null without times or a bandwidth.
    """
    if token_s is None or not bandwidth or not bandwidth.get("bytes_per_s") or plan.prompt is None:
        return None
    read = bytes_per_token(artifact, plan.prompt + (plan.generate or 0) / 2)
    if read is None:
        return None
    total, cache = sum(read.values()), bandwidth.get("cache_bytes")
    return {
        "bytes_per_token": total,
        **read,
        "bandwidth": bandwidth,
        "share": total / token_s["median"] / bandwidth["bytes_per_s"],
        "in_cache": None if cache is None else total < cache,
    }
