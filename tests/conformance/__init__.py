"""The conformance sweep: PyTorch's own operator database, mapped, against the Python loop."""
