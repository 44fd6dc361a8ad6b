"""Logits as a device computes them: `python -m bench.logits` reads a request, writes an array, answers a line.

For devices that see this machine's files: the emulated ones and this machine itself.
"""

import json
import sys
from pathlib import Path

import numpy as np

from devices.artifact import open_artifact
from devices.errors import UserError
from devices.process import end_with
from devices.runtime import Decoder


def main() -> int:
    """Logits float32 [blocks, window, vocab] of `ids` [blocks, window] to the .npy file `out`; 0, or 2 with a line."""
    end_with(int(sys.argv[1]))
    request = json.loads(sys.stdin.readline())
    try:
        decoder = Decoder(open_artifact(Path(request["artifact"]), verify=False), 1)
        blocks = np.array(request["ids"], dtype=np.int64)
        np.save(request["out"], np.concatenate([decoder.logits(block[None]) for block in blocks]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps({"blocks": len(blocks)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
