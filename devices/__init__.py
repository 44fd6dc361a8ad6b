"""What lives on a device: the artifact format, ONNX Runtime inference, generation, and how to reach one."""
