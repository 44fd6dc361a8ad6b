"""Logits as a device computes them: `python -m bench.logits` reads a request, writes an array, answers a line.

For devices that see this machine's files: the emulated ones and this machine itself.
"""

import json
import sys
from pathlib import Path

import numpy as np

from bench import quality
from devices.artifact import open_artifact
from devices.errors import UserError
from devices.process import end_with
from devices.runtime import Decoder
from devices.text import encode_text, read_text


def main() -> int:
    """Logits float32 [blocks, window, vocab] of a text's first windows to the .npy file `out`; 0, or 2 with a line."""
    end_with(int(sys.argv[1]))
    request = json.loads(sys.stdin.readline())
    try:
        artifact = open_artifact(Path(request["artifact"]), verify=False)
        decoder = Decoder(artifact, 1)
        ids = encode_text(decoder.tokenizer, read_text(Path(request["corpus"])))
        blocks = quality.windows(ids, request["window"], request["blocks"])
        np.save(request["out"], np.concatenate([decoder.logits(block[None]) for block in blocks]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps({"ids": blocks.tolist()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
