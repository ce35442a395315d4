"""From a call to the way it runs: who serves it, and how."""
