"""Benchmarks: not tests, never timed in CI. Run one with ``python -m tests.benchmarks.overhead``."""
