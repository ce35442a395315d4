"""Captured programs: a run's physical operations, written down, simplified and replayed."""
