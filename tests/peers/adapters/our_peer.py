"""Ours: the runtime that ships, from the base install's packages alone."""

import time
from typing import Any

import contract


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy through `Decoder`'s prompt and steps; the artifact is verified as it is for a user."""
    from devices.runtime import Decoder

    def load() -> tuple[Any, Any]:
        context = len(request["ids"]) + request["new"]
        decoder = Decoder(request["model"], request["threads"], context=context)
        return (
            lambda ids: int(decoder.prefill([ids])[0].argmax()),
            lambda token: int(decoder.step([token])[0].argmax()),
        )

    return contract.stepwise(request, load)


def classify(request: dict[str, Any]) -> dict[str, Any]:
    """`Classifier.predict_ids`, which sorts by length itself."""
    from devices.runtime import Classifier

    classifier = Classifier(request["model"], request["threads"])
    load_s = time.perf_counter() - contract.BEGAN
    rows, batch = request["rows"], request["batch"]
    classifier.predict_ids(rows[: len(rows) // 8 or 1], batch)
    return contract.passes(request, lambda: classifier.predict_ids(rows, batch), load_s)


if __name__ == "__main__":
    contract.answer({"generate": generate, "classify": classify})
