"""All private PyTorch API that the core uses, and what PyTorch's versions do not have in common.

Nothing else in the core imports it (``./run lint`` checks that).
"""
