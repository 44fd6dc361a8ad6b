"""The process whose start is measured: `python -m bench.cold PARENT`, the worker's request on standard input.

It does what a program does that uses an artifact: opens it, every hash verified, and takes a prompt. Its answer
has the system's monotonic clock after the imports, when the decoder was ready, and at the first token.
"""

import json
import sys
import time
from pathlib import Path

from bench.workloads import Workload, prompt_ids
from devices.errors import UserError
from devices.process import end_with
from devices.runtime import Decoder
from devices.state import memory


def main() -> int:
    """Answer a line: 0, or 2 with one line on standard error."""
    imported = time.monotonic()
    end_with(int(sys.argv[1]))
    request = json.load(sys.stdin)
    workload = Workload(**request["workload"])
    assert workload.prompt is not None and workload.generate is not None
    try:
        decoder = Decoder(
            Path(request["artifact"]), request["threads"], context=workload.prompt + workload.generate
        )
        loaded = time.monotonic()
        prompt = prompt_ids(decoder.artifact.model["vocab"], workload.prompt, request["seed"])
        decoder.prefill([prompt]).argmax(axis=-1)
        first = time.monotonic()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    answer = {"main": imported, "loaded": loaded, "first": first, "memory": memory()}
    sys.stdout.write(json.dumps({**answer, "threads": decoder.threads}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
