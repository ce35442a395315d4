"""Looking at what a mapped function does: explain, check."""
