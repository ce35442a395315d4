"""torch.lobpcg over a batch: all samples iterate together, those of one shape of search space in one block.

PyTorch's function takes batches too, but iterates for one matrix after the other. The iteration here is the same, step
by step, so that results agree also where it is stopped before it has converged.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from vmap_core.extend import BatchedTensor, RulePack, UnsupportedError, ensure_bdim, user_location

from ._torch import LOBPCGAutogradFunction
from .ranks import logical_shape

pack = RulePack("linalg.lobpcg")
_SIGNATURE = inspect.signature(torch.lobpcg)
_EPS = {torch.float32: 1.2e-07, torch.float64: 2.23e-16}  # as PyTorch has them


@pack.rule(torch.lobpcg)
def lobpcg(info, in_dims, *args, **kwargs):
    """(*, m, m), guesses (*, m, n) -> k eigenvalues (*, k) and eigenvectors (*, m, k)."""
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    dims = dict(zip(_SIGNATURE.parameters, in_dims[: len(args)], strict=False))
    dims |= in_dims[len(args)] if len(in_dims) > len(args) else {}
    if given.get("X") is None:
        info.require_randomness(torch.lobpcg)
        a, n = given["A"], given.get("n") or given.get("k") or 1
        size = (info.batch_size,) if info.randomness == "different" else ()
        shape = (*size, *logical_shape(a, dims["A"])[:-1], n)
        given["X"], dims["X"] = torch.randn(shape, dtype=a.dtype, device=a.device), 0 if size else None
    for name in ("A", "B", "X"):
        if given.get(name) is not None:
            given[name] = ensure_bdim(given[name], dims.get(name), info.batch_size)
    if not any(isinstance(v, BatchedTensor) for v in given.values()) and _fits(**given):
        if given.get("iK") is not None:
            given["iK"] = ensure_bdim(given["iK"], dims.get("iK"), info.batch_size)
        return _solve(given), 0
    if dims.get("iK") is not None:
        raise UnsupportedError(f"vmap: lobpcg takes no batched preconditioner here, at {user_location()}")
    return torch.lobpcg(**given), 0  # at a level further out the batch is one of its leading dims


def _fits(A: Tensor, X: Tensor, B: Any = None, tracker: Any = None, ortho_bparams: Any = None, **_: Any) -> bool:
    """Tell whether the iteration here serves; PyTorch's serves the rest, and says what is wrong with shapes."""
    *lead, m, columns = A.shape
    return (
        A.dtype in _EPS and m == columns and m >= 3 * X.shape[-1] and X.dtype == A.dtype and not X.requires_grad
        and list(X.shape[:-1]) == [*lead, m] and (B is None or B.shape == A.shape)
        and tracker is None and not (ortho_bparams or {}).get("ortho_use_drop")
    )  # fmt: skip


def _solve(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    lead = given["A"].shape[:-2]
    count = math.prod(lead)
    for name in ("A", "B"):
        x = given.get(name)
        if x is not None and any(given[k].requires_grad for k in ("A", "B") if given.get(k) is not None):
            given[name] = (x + x.mT) / 2  # so that gradients are symmetric, as PyTorch does
    for name in ("A", "B", "X", "iK"):
        x = given.get(name)
        if x is not None:
            missing = len(lead) + 2 - x.ndim
            x = x.reshape(x.shape[0], *(1,) * missing, *x.shape[1:]).expand(*lead, *x.shape[-2:])
            given[name] = x.reshape(count, *x.shape[-2:])
    values, vectors = _Lobpcg.apply(*(given.get(name) for name in _SIGNATURE.parameters))
    return values.reshape(*lead, *values.shape[1:]), vectors.reshape(*lead, *vectors.shape[1:])


class _Lobpcg(LOBPCGAutogradFunction):
    """PyTorch's derivative, which takes batches, of the iteration here."""

    @staticmethod
    def forward(ctx, *args):
        """Iterate for a batch."""
        given = dict(zip(_SIGNATURE.parameters, args, strict=True))
        values, vectors = Iteration(**given).run()
        ctx.save_for_backward(given["A"], given["B"], values, vectors)
        ctx.largest = given["largest"]
        return values, vectors


class Iteration:
    """The state of all samples: (N, m, m) matrices, (N, m, n) guesses; see torch._lobpcg.LOBPCG for the method."""

    def __init__(self, A: Any, k: Any, B: Any, X: Any, n: Any, iK: Any, niter: Any, tol: Any, largest: Any,
                 method: Any, tracker: Any, ortho_iparams: Any, ortho_fparams: Any, ortho_bparams: Any) -> None:  # fmt: skip
        """Set up the state."""
        self.A, self.B, self.iK, self.X = A, B, iK, X.clone()
        count, self.m, self.n = X.shape
        self.k = self.n if k is None else k
        self.left = 1000 if niter is None else niter
        self.tol = _EPS[A.dtype] ** 0.5 if tol is None else tol
        self.largest = largest is None or largest
        self.basic = method == "basic"
        sizes, limits = ortho_iparams or {}, ortho_fparams or {}
        self.rounds = sizes.get("ortho_i_max", 3), sizes.get("ortho_j_max", 3)
        self.ortho_tol = limits.get("ortho_tol", self.tol)
        self.replace_tol = limits.get("ortho_tol_replace", self.tol)
        self.E, self.S = X.new_zeros(count, self.n), X.new_zeros(count, self.m, 3 * self.n)
        x_norm = _norm(X)
        self.a_norm = _norm(A @ X) / x_norm
        self.b_norm = _norm(X if B is None else B @ X) / x_norm
        self.alone: set[int] = set()
        self.options = {"niter": niter, "tol": tol, "largest": largest, "method": method,
                        "ortho_iparams": ortho_iparams, "ortho_fparams": ortho_fparams}  # fmt: skip
        self.start = X

    def run(self) -> tuple[Tensor, Tensor]:
        """Iterate until every sample has k converged pairs, or the steps are used up."""
        blocks = {(0, 0): torch.arange(len(self.X), device=self.X.device)} if len(self.X) else {}
        first = True
        while blocks and (first or self.left):
            following: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for (converged, end), at in blocks.items():
                for key, part in self.step(at, converged, end, first):
                    following[key].append(part)
            self.left, first = self.left - 1, False
            blocks = {key: torch.cat(parts) for key, parts in following.items()}
        for i in self.alone:  # a residual of exact zeros shrinks the search space in its own way
            rest = {k: None if v is None else v[i] for k, v in (("B", self.B), ("iK", self.iK))}
            self.E[i, : self.k], self.X[i, :, : self.k] = torch.lobpcg(
                self.A[i], self.k, X=self.start[i].clone(), **rest, **self.options
            )
        return self.E[:, : self.k], self.X[:, :, : self.k]

    def step(self, at: Tensor, done: int, end: int, first: bool) -> list[tuple[tuple[int, int], Tensor]]:
        """Iterate once for the samples ``at``, which have ``done`` pairs and a search space S[:, done:end].

        Returns:
            Where each goes on: the number of its converged pairs and the end of its search space.
        """
        n = self.n
        A, B = self.A[at], None if self.B is None else self.B[at]
        space = self.X[at] if first else self.S[at, :, done:end]
        if self.basic or first:
            reduce = _rayleigh_ritz(B, space)
            values, z = _eigh(_form(_form(A, space), reduce), self.largest)
            z = reduce @ z
        else:
            values, z = _eigh(_form(A, space), self.largest)
        kept = n if first else n - done
        X, E = self.X[at], self.E[at]
        X[:, :, n - kept :] = space @ z[:, :, :kept]
        if self.basic or not first:
            E[:, n - kept :] = values[:, :kept]
        P = X[:, :, :0]
        if not first and self.basic:
            P = space @ z[:, :, n : 2 * n - done]
        elif not first:
            P = space @ (z[:, :, kept:] @ torch.linalg.qr(z[:, :kept, kept:].mT).Q)
        R = A @ X - (X if B is None else B @ X) * E.unsqueeze(1)
        scale = self.a_norm[at, None] + E.abs() * self.b_norm[at, None]
        small = torch.linalg.vector_norm(R, dim=1) / (torch.linalg.vector_norm(X, dim=1) * scale) < self.tol
        counts = small.long().cumprod(1).sum(1)
        if (counts < done).any():
            raise AssertionError(f"the number of converged eigenpairs (was {done}) cannot decrease")
        self.X[at], self.E[at] = X, E
        self.S[at, :, :n], self.S[at, :, n : n + P.shape[2]] = X, P
        if self.left == 1:
            return []
        following = []
        for count in [c for c in counts.unique().tolist() if c < self.k]:
            part = counts == count
            here, W = at[part], R[part][:, :, 0 if first else count :]
            if self.basic:
                W = W if self.iK is None else self.iK[here] @ W
            else:
                W, odd = self.orthogonal(W, self.S[here, :, : n + P.shape[2]], None if B is None else B[part])
                if odd.any():
                    self.alone.update(here[odd].tolist())
                    here, W = here[~odd], W[~odd]
            last = n + P.shape[2] + W.shape[2]
            self.S[here, :, n + P.shape[2] : last] = W
            following.append(((count, last), here))
        return [(key, part) for key, part in following if len(part)]

    def orthogonal(self, U: Tensor, V: Tensor, B: Any) -> tuple[Tensor, Tensor]:
        """Make U orthonormal and orthogonal to V; a sample that is good enough stays as it is.

        Returns:
            U, and which samples have a column of zeros.
        """
        rounds, inner_rounds = self.rounds
        v_norm = _norm(V if B is None else B @ V)
        overlap = V.mT @ (U if B is None else B @ U)
        good = torch.zeros(len(U), dtype=torch.bool, device=U.device)
        odd = good.clone()
        one = torch.eye(U.shape[2], dtype=U.dtype, device=U.device)
        for _ in range(rounds):
            U = torch.where(good[:, None, None], U, U - V @ overlap)
            normal = good.clone()
            for _ in range(inner_rounds):
                scaled, zeros = self.orthonormal(U, B)
                odd |= zeros & ~normal
                U = torch.where((normal | zeros)[:, None, None], U, scaled)
                BU = U if B is None else B @ U
                normal |= _norm(U.mT @ BU - one) / (_norm(BU) * _norm(U)) < self.ortho_tol
                if (normal | odd).all():
                    break
            overlap = V.mT @ BU
            good |= _norm(overlap) / (v_norm * _norm(U)) < self.ortho_tol
            if (good | odd).all():
                break
            if self.m < U.shape[2] + V.shape[2]:  # PyTorch's iteration says so
                odd |= ~good
                break
        return U, odd

    def orthonormal(self, U: Tensor, B: Any) -> tuple[Tensor, Tensor]:
        """(G, m, j) -> orthonormal columns (G, m, j), and which samples have a column of zeros."""
        gram = _form(B, U) if B is not None else U.mT @ U
        d = gram.diagonal(0, -2, -1)
        zeros = (d == 0).any(1)
        d = torch.where(zeros[:, None], torch.ones_like(d), d) ** -0.5
        values, z = _eigh(gram * d.unsqueeze(1) * d.unsqueeze(2), largest=False)
        low = self.replace_tol * values.abs().amax(1, keepdim=True)
        return (U * d.unsqueeze(1)) @ (z * values.maximum(low).unsqueeze(1) ** -0.5), zeros


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(1, 2))


def _form(A: Tensor, S: Tensor) -> Tensor:
    return S.mT @ (A @ S)


def _eigh(A: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(A, UPLO="U")
    return (values.flip(-1), vectors.flip(-1)) if largest else (values, vectors)


def _rayleigh_ritz(B: Any, S: Tensor) -> Tensor:
    """Return what turns the generalised problem in the columns of S into a plain one."""
    gram = _form(B, S) if B is not None else S.mT @ S
    d = gram.diagonal(0, -2, -1) ** -0.5
    upper = torch.linalg.cholesky(gram * d.unsqueeze(1) * d.unsqueeze(2), upper=True)
    return torch.linalg.solve_triangular(upper, d.diag_embed(), upper=True, left=False)
