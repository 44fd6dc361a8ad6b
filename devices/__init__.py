"""What lives on a device: the artifact format, ONNX Runtime inference, generation, and how to reach one."""

import os

# Before anything here imports ONNX Runtime: its Linux wheel otherwise starts a thread and writes below the
# home folder as soon as it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
