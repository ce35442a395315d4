"""The statements of random programs, by family, as templates: what stands in braces is drawn (see `generate.Draw`).

``{x}`` is a tensor, and the one that dims, indices and shapes after it are of; so is ``{w}``, which is written to; ``{y}`` is
any other, ``{z}`` one that shares no memory with it, ``{i}`` an index tensor, ``{b}`` a mask. Whether what is drawn makes sense is found out by running it.
"""

from __future__ import annotations

VIEWS = """
{x}.view(-1)
{x}.view({shape})
{x}.reshape(-1)
{x}.reshape({shape})
{x}.reshape_as({y})
{x}.view_as({y})
{x}.flatten()
{x}.flatten({d}, {d})
{x}.ravel()
{x}.unflatten({d}, ({n}, -1))
{x}.transpose({d}, {d})
{x}.mT
{x}.T
{x}.t()
{x}.permute({dims})
{x}.movedim({d}, {d})
{x}.unsqueeze({d})
{x}.squeeze()
{x}.squeeze({d})
{x}.expand({more}, *{x}.shape)
{x}.expand_as({y})
{x}.broadcast_to({y}.shape)
{x}.narrow({d}, 0, {n})
{x}.select({d}, {k})
{x}.diagonal()
{x}.diagonal({k}, {d}, {d})
{x}.unfold({d}, {n}, {n})
{x}.chunk({n}, {d})[0]
{x}.split({n}, {d})[-1]
{x}.tensor_split({n}, {d})[{k}]
{x}.unbind({d})[{k}]
{x}.as_strided({shape}, {x}.reshape({shape}).stride())
{x}.as_strided(({n},), (1,))
{x}.as_strided({x}.shape, {x}.stride())
torch.view_as_real({x})
torch.view_as_complex({x})
{x}.real
{x}.detach()
{x}.view({dtype})
{x}.contiguous()
{x}.swapaxes({d}, {d})
torch.atleast_2d({x})
{x}.hsplit({n})[0]
torch.broadcast_tensors({x}, {y})[{n}]
torch.squeeze({x}, {d})
{x}.adjoint()
{x}.to({x}.dtype)
{x}.type_as({y})
{x}.expand_as({x})
{x}.data
"""

INDEXED = """
{x}[{index}]
{x}[{index}]
{x}[{index}]
{x}[{index}]
{x}[{index}][{k}]
{x}[{i}]
{x}[{b}]
{x}[..., {i}]
{x}.index_select({d}, {i}.reshape(-1))
{x}.take({i})
{x}.gather({d}, {i})
torch.take_along_dim({x}, {i}, {d})
{x}.masked_fill({b}, {number})
{x}.index_fill({d}, {i}, {number})
{x}.index_add({d}, {i}, {y})
{x}.index_copy({d}, {i}, {y})
{x}.scatter({d}, {i}, {number})
{x}.scatter_add({d}, {i}, {y})
{x}.select_scatter({y}, {d}, {k})
{x}.slice_scatter({y}, {d}, {k})
{x}.diagonal_scatter({y})
{x}.masked_scatter({b}, {y})
torch.where({b}, {x}, {y})
torch.where({b}, {x}, {number})
F.one_hot({i} % 3, 3)
F.embedding({i}, {x})
"""

WRITES = """
{w}[{index}] = {number}
{w}[{index}] = {y}
{w}[{index}] = {y}
{w}[{index}] += {y}
{w}[{index}] *= {number}
{w}[{b}] = {number}
{w}[{i}] = {z}
{w}[{i}] += 1
{w}[{index}].add_({y})
{w}[{index}].zero_()
{w}[{index}].copy_({y})
{w}[{index}].fill_({number})
{w}.reshape(-1)[{k}] = {y}
{w}.view(-1)[{k}] = {number}
{w}.flatten()[{k}] = {number}
{w}.contiguous()[{index}] = {number}
{w}.ravel().mul_({number})
{w}.mT[{index}] = {y}
{w}.diagonal().add_({y})
{w}.transpose({d}, {d}).mul_({y})
{w}.select({d}, {k}).sub_({y})
{w}.narrow({d}, 0, {n}).zero_()
{w}.unbind({d})[{k}].add_({y})
{w}.unsqueeze({d}).mul_({number})
{w}.add_({y})
{w}.add_({number})
{w} += {y}
{w} -= {y}
{w} *= {number}
{w} /= {number}
{w} |= {y}
{w}.mul_({y})
{w}.sub_({y}, alpha={number})
{w}.copy_({y})
{w}.zero_()
{w}.fill_({number})
{w}.fill_({y})
{w}.neg_()
{w}.abs_()
{w}.clamp_({number})
{w}.clamp_(max={number})
{w}.pow_(2)
{w}.sin_()
{w}.relu_()
{w}.masked_fill_({b}, {number})
{w}.masked_fill_({b}, {y})
{w}.masked_scatter_({b}, {z})
{w}.index_fill_({d}, {i}, {number})
{w}.index_add_({d}, {i}, {z})
{w}.index_copy_({d}, {i}, {z})
{w}.index_put_(({i},), {z})
{w}.index_put_(({i},), {z}, accumulate=True)
{w}.scatter_({d}, {i}, {number})
{w}.scatter_({d}, {i}, {z})
{w}.scatter_add_({d}, {i}, {z})
{w}.put_({i}, {z})
{w}.t_()
{w}.transpose_({d}, {d})
{w}.unsqueeze_({d})
{w}.squeeze_()
{w}.squeeze_({d})
{w}.tril_()
{w}.cumsum_({d})
{w}.logical_not_()
{w}.lerp_({y}, 0.5)
{w}.addcmul_({y}, {y})
{w}.fill_diagonal_({number})
{w}.swapaxes_({d}, {d})
{w}.as_strided_(({n},), (1,))
torch.add({w}, {y}, out={w})
torch.add({w}, {number}, out={w})
torch.neg({w}, out={w})
"""

FRESH = """
torch.zeros({shape}, dtype={dtype})
torch.ones({shape})
torch.zeros({shape})
torch.zeros({literal})
torch.full({literal}, {number})
torch.arange({n})
torch.arange(6.0).reshape(2, 3)
torch.eye({n})
torch.tensor({number})
torch.tensor([{number}, {number}])
torch.zeros_like({x})
torch.ones_like({x})
torch.full_like({x}, {number})
torch.full_like({x}, {number}, dtype={dtype})
{x}.new_zeros({literal})
{x}.new_zeros({shape})
{x}.new_full({shape}, {number})
{x}.new_tensor([{number}, {number}])
{x}.clone()
{x}.clone()
{x}.clone(memory_format=torch.contiguous_format)
{x} * 1
{x}.to({dtype})
{x}.float()
{x}.detach().clone()
"""

ELEMENTWISE = """
{x} + {y}
{x} + {y}
{x} - {y}
{x} * {y}
{x} * {y}
{x} + {number}
{number} - {x}
{x} * {number}
{x} / {number}
{x} / {y}
{number} / {x}
{x} // {number}
{x} // {y}
{x} % {number}
{x} % {y}
{x} ** 2
{x}.abs() ** {y}
2 ** {x}
-{x}
~{x}
{x} > {y}
{x} <= {number}
{x} == {y}
{x} & {y}
{x} | {y}
{x} ^ {y}
{x} << 1
torch.add({x}, {y}, alpha=2)
torch.sub({x}, {number}, alpha={number})
torch.rsub({x}, {y})
torch.maximum({x}, {y})
torch.fmin({x}, {y})
torch.lerp({x}, {y}, 0.25)
torch.lerp({x}, {y}, {y})
torch.addcmul({x}, {y}, {y}, value={number})
torch.addcdiv({x}, {y}, {y})
torch.clamp({x}, {number}, {number})
torch.clamp({x}, min={y})
torch.atan2({x}, {y})
torch.hypot({x}, {y})
torch.copysign({x}, {y})
torch.remainder({x}, {y})
torch.fmod({x}, {number})
torch.float_power({x}, 2)
torch.xlogy({x}, {y})
torch.true_divide({x}, {y})
torch.div({x}, {y}, rounding_mode="floor")
torch.logical_and({x}, {y})
torch.heaviside({x}, {y})
torch.ldexp({x}, {y})
torch.gcd({x}, {y})
torch.isclose({x}, {y})
torch.nan_to_num({x})
torch.sin({x})
torch.exp({x}.clamp(max=2))
torch.tanh({x})
torch.abs({x})
torch.sign({x})
torch.sqrt({x}.abs())
torch.square({x})
torch.sigmoid({x})
torch.reciprocal({x})
torch.round({x})
torch.conj({x})
torch.angle({x})
torch.complex({x}, {y})
torch.polar({x}, {y})
F.relu({x})
F.softplus({x})
F.gelu({x})
F.leaky_relu({x}, 0.1)
F.huber_loss({x}, {y})
F.mse_loss({x}, {y})
F.smooth_l1_loss({x}, {y}, reduction="none")
F.soft_margin_loss({x}, {y})
"""

JOINS = """
torch.cat([{x}, {y}], {d})
torch.cat([{x}, {y}])
torch.stack([{x}, {y}], {d})
torch.hstack([{x}, {y}])
torch.vstack([{x}, {y}])
torch.dstack([{x}, {y}])
torch.column_stack([{x}, {y}])
torch.block_diag({x}, {y})
torch.meshgrid({x}, {y}, indexing="ij")[0]
torch.cartesian_prod({x}, {y})
{x}.repeat({n}, *[1] * {x}.dim())
{x}.tile({n})
{x}.repeat_interleave({n}, {d})
{x}.repeat_interleave({n})
F.pad({x}, (1, {n}))
{x}.roll(1, {d})
{x}.roll({k})
{x}.flip({d})
{x}.rot90()
torch.diag({x})
{x}.diag_embed()
{x}.tril({k})
{x}.triu({k})
torch.vander({x}, 3)
torch.tril_indices({n}, {n})
"""

REDUCTIONS = """
{x}.sum()
{x}.sum({d})
{x}.sum({d}, keepdim=True)
{x}.sum(dtype={dtype})
{x}.mean({d})
{x}.mean()
{x}.prod({d})
{x}.prod()
{x}.amax({d})
{x}.max()
{x}.max({d})
{x}.max({d}).values
{x}.min({d}).indices
{x}.argmax()
{x}.argmin({d})
{x}.any()
{x}.all({d})
{x}.std()
{x}.var({d}, correction=0)
{x}.norm()
{x}.norm(dim={d})
{x}.logsumexp({d})
{x}.softmax({d})
{x}.log_softmax({d})
{x}.cumsum({d})
{x}.cumprod({d})
{x}.cummax({d}).values
{x}.sort({d}).values
{x}.sort({d}, stable=True).indices
{x}.topk(1, {d}).values
{x}.median()
{x}.median({d}).values
{x}.kthvalue(1, {d}).values
{x}.mode({d}).values
{x}.count_nonzero({d})
{x}.nansum({d})
{x}.diff(dim={d})
{x}.trapezoid(dim={d})
{x}.logcumsumexp({d})
{x}.aminmax().max
{x}.dist({y})
{x}.quantile(0.5)
torch.trace({x})
F.normalize({x}, dim={d})
F.layer_norm({x}, {x}.shape[-1:])
F.cosine_similarity({x}, {y}, dim={d})
torch.searchsorted({x}.sort().values, {y})
torch.bucketize({x}, {y}.flatten().sort().values)
torch.fft.rfft({x}.float()).abs()
torch.cov({x})
"""

PRODUCTS = """
{x} @ {y}
{x} @ {y}
{x} @ {x}.mT
{x}.mT @ {y}
torch.matmul({x}, {y})
torch.dot({x}, {y})
torch.vdot({x}, {y})
torch.mv({x}, {y})
torch.mm({x}, {y})
torch.bmm({x}, {y})
torch.outer({x}, {y})
torch.inner({x}, {y})
torch.kron({x}, {y})
torch.tensordot({x}, {y}, 1)
torch.einsum("ij,j->i", {x}, {y})
torch.einsum("...i,...i->...", {x}, {y})
torch.einsum("ij,kj->ik", {x}, {y})
torch.addmm({x}, {y}, {y})
torch.addmv({x}, {y}, {y})
torch.addr({x}, {y}, {y})
torch.baddbmm({x}, {y}, {y})
torch.linalg.vecdot({x}, {y})
torch.linalg.matrix_power({x}, 2)
torch.cross({x}, {y}, dim={d})
torch.cdist({x}, {y})
F.linear({x}, {y})
F.linear({x}, {y}, {y})
F.bilinear({x}, {y}, {y})
F.conv1d({x}, {y})
torch.linalg.multi_dot([{x}, {y}])
torch.chain_matmul({x}, {y})
"""

LAYOUT = """
facts.append(strides({x}))
facts.append({x}.is_contiguous())
facts.append({x}.contiguous() is {x})
facts.append(strides({x}.flatten()))
"""

CHOICES = """
{x}.view(-1) if {x}.is_contiguous() else {x} * 2
{x} + 1 if strides({x})[-1:] == [1] else {x} - 1
{x} * 3 if strides({x}) == sorted(strides({x})) else {x}.reshape(-1)
"""


def lines(family: str) -> tuple[str, ...]:
    """Return the templates of a family."""
    return tuple(filter(None, family.split("\n")))


EXPRESSIONS = {
    lines(VIEWS): 26, lines(INDEXED): 14, lines(FRESH): 9, lines(ELEMENTWISE): 17, lines(JOINS): 6,
    lines(REDUCTIONS): 8, lines(PRODUCTS): 7, lines(CHOICES): 1,
}  # fmt: skip
"""How often each family is drawn."""

STATEMENTS = {lines(WRITES): 26, lines(LAYOUT): 3}
