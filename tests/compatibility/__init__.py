"""The suite on other versions of PyTorch, and PyTorch's private names that the sources use."""
