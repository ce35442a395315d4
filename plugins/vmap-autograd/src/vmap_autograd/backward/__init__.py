"""Rules for ATen's backward operators: what the engine calls when its vectors are batched.

Most backward formulas are made of ordinary operators, which core and the other packs have rules for. Here are those
with kernels of their own.
"""

from . import convolution, distance, embedding, folded, loss, pointwise

packs = [convolution.pack, distance.pack, embedding.pack, folded.pack, loss.pack, pointwise.pack]
