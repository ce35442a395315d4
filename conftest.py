"""Triton's interpreter stands in for a GPU where there is none.

It has to be chosen before anything imports Triton (inductor does, where a test compiles): so here, in every worker,
before the first test module.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
