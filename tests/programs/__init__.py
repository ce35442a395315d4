"""Random programs: straight lines of PyTorch operations, mapped, against the Python loop."""
