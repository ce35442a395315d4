"""The level stack, the tensors that mapped functions see, and how a call enters."""
