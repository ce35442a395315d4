"""What is replaced in PyTorch, and why."""
