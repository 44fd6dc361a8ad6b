"""What ARM computes, beside x86 and the model that was not quantized: `make arm-table` writes docs/results/arm.json.

Each artifact's logits on the same text, from processes of the code that ships; docs/arm.md shows the table.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from bench import quality
from bench.process import ask
from devices import profiles
from devices.artifact import open_artifact
from devices.machine import environment
from devices.text import encode_text, load_tokenizer, read_text
from toolchain.corpus import heldout_file

REFERENCE = ("fp32", "local")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "artifacts", nargs="+", type=Path, help="folders named after their recipes, fp32 among them"
    )
    parser.add_argument("--devices", default="local,cortex-a72,cortex-a76")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    ids = windows(asked.artifacts[0], asked.window, asked.blocks)
    found = {}
    for path in asked.artifacts:
        for device in asked.devices.split(","):
            found[path.name, device] = logits(path, device, ids)
            print(f"{path.name} on {device}: done", flush=True)
    rows = [row(recipe, device, ids, found) for recipe, device in found]
    told = environment()
    kept = ("cpu", "isa", "os", "onnxruntime", "numpy")
    document = {
        "command": "make arm-table",
        "machine": {key: told[key] for key in kept},
        "text": {"corpus": "stdlib", "window": asked.window, "blocks": asked.blocks},
        "artifacts": {path.name: open_artifact(path).sha256 for path in asked.artifacts},
        "rows": rows,
    }
    asked.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def windows(artifact: Path, window: int, blocks: int) -> np.ndarray:
    """Ids int64 [blocks, window] of the text's beginning."""
    text = read_text(heldout_file("stdlib"))
    return quality.windows(encode_text(load_tokenizer(artifact), text), window, blocks)


def logits(path: Path, device: str, ids: np.ndarray) -> np.ndarray:
    """Logits [blocks, window, vocab] of an artifact on a device."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        request = {"artifact": str(path.resolve()), "ids": ids.tolist(), "out": str(out)}
        ask(request, str(path), profiles.load(device), module="bench.logits")
        return np.load(out)


def row(
    recipe: str, device: str, ids: np.ndarray, found: dict[tuple[str, str], np.ndarray]
) -> dict[str, object]:
    """Perplexity; agreement of the most likely token and difference of logits, from x86 and from fp32."""
    ours, x86, whole = found[recipe, device], found[recipe, "local"], found[REFERENCE]
    return {
        "recipe": recipe,
        "device": device,
        "perplexity": quality.finite_exp(quality.nll(ours, ids) / ids[:, 1:].size),
        **{f"{key}_x86": value for key, value in differences(ours, x86).items()},
        **{f"{key}_fp32": value for key, value in differences(ours, whole).items()},
    }


def differences(ours: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Percent of positions with the same most likely token; mean and largest absolute difference of logits."""
    apart = np.abs(ours - others)
    return {
        "agreement": float(100 * (ours.argmax(-1) == others.argmax(-1)).mean()),
        "mean": float(apart.mean()),
        "largest": float(apart.max()),
    }


def table(rows: list[dict[str, object]]) -> str:
    """In Markdown."""
    heads = (
        "recipe",
        "device",
        "perplexity",
        "argmax as x86 %",
        "mean diff. x86",
        "largest",
        "argmax as fp32 %",
        "mean",
    )
    keys = (
        *("recipe", "device", "perplexity"),
        *("agreement_x86", "mean_x86", "largest_x86", "agreement_fp32", "mean_fp32"),
    )
    digits = {"perplexity": ".3f", "agreement_x86": ".2f", "agreement_fp32": ".2f"}
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in rows:
        cells = [
            format(one[key], digits.get(key, ".2g")) if isinstance(one[key], float) else str(one[key])
            for key in keys
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
