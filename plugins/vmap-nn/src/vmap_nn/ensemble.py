"""`Ensemble`: several modules of one architecture as one module, whose parameters have the members in front."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vmap_core import vmap
from vmap_core.extend import UnsupportedError, places_of, swapped

Randomness = Literal["error", "same", "different"]


class Ensemble(nn.Module):
    """Modules of one architecture, called together.

    Every parameter and buffer is the members' stacked, (members, *), under the members' own names, so that
    ``state_dict``, ``.to``, ``.train``, ``.parameters`` and optimizers work as for one module. Training the sum of the
    members' losses trains each as on its own, for optimizers that work element by element (SGD, Adam).

    Args:
        modules: the members, of one class and with parameters of the same shapes. They are copied.
        in_dims: which dim of each positional argument is the members'; None (the default) gives all the same.
        out_dims: where the members' dim goes in the outputs.
        shared: names of parameters and buffers (or of submodules) that the members have in common: the first one's.
        randomness: as in `vmap`: dropout differs between members by default.
        chunk_size: at most so many members at a time.

    Raises:
        ValueError: there are no modules, or they do not fit together; the message names what differs.

    Examples:
        >>> import torch
        >>> from vmap_nn import Ensemble
        >>> ensemble = Ensemble([torch.nn.Linear(4, 2) for _ in range(10)])
        >>> ensemble(torch.randn(3, 4)).shape  # the same input for every member
        torch.Size([10, 3, 2])
        >>> ensemble.state_dict()["module.weight"].shape
        torch.Size([10, 2, 4])
        >>> ensemble[0](torch.randn(3, 4)).shape  # one member, as a module of its own
        torch.Size([3, 2])
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        *,
        in_dims: Any = None,
        out_dims: Any = 0,
        shared: Sequence[str] = (),
        randomness: Randomness = "different",
        chunk_size: int | None = None,
    ) -> None:
        """Stack the members' parameters and buffers."""
        super().__init__()
        members = list(modules)
        if not members:
            raise ValueError("Ensemble: expected at least one module")
        for i, member in enumerate(members[1:], 1):
            _check_alike(members[0], member, i)
        states = [_state(m) for m in members]
        common = _select(states[0], shared)
        stacked = {
            name: tensor if name in common else torch.stack([s[name].detach() for s in states])
            for name, tensor in states[0].items()
        }
        self._set(members[0], stacked, common, len(members), in_dims, out_dims, randomness, chunk_size)

    def _set(
        self, template: nn.Module, stacked: dict[str, Tensor], common: set[str], count: int, in_dims: Any, out_dims: Any,
        randomness: Randomness, chunk_size: int | None,
    ) -> None:  # fmt: skip
        self.module = _filled(template, stacked)
        self.shared = frozenset(common)
        self.count = count
        self.in_dims, self.out_dims = in_dims, out_dims
        self.randomness, self.chunk_size = randomness, chunk_size

    @classmethod
    def build(
        cls,
        make: Callable[[], nn.Module],
        count: int,
        *,
        in_dims: Any = None,
        out_dims: Any = 0,
        shared: Sequence[str] = (),
        randomness: Randomness = "different",
        chunk_size: int | None = None,
    ) -> Ensemble:
        """Make an ensemble whose members are initialised all at once: ``make`` runs once, mapped.

        Args:
            make: makes one member. Its random draws differ from member to member (and are not those of a loop).
            count: number of members.
            in_dims, out_dims, shared, randomness, chunk_size: as for `Ensemble`.

        Examples:
            >>> import torch
            >>> from vmap_nn import Ensemble
            >>> ensemble = Ensemble.build(lambda: torch.nn.Linear(4, 2), 10)
            >>> ensemble.module.weight.std(0).min() > 0
            tensor(True)
        """
        if count < 1:
            raise ValueError("Ensemble: expected at least one module")
        template: list[nn.Module] = []

        def initialise() -> dict[str, Tensor]:
            template[:] = [make()]
            return {name: tensor.detach() for name, tensor in _state(template[0]).items()}

        made = vmap(initialise, axis_size=count, randomness="different")()
        with torch.device("meta"):
            example = make()  # its structure; the values are those made above
        common = _select(made, shared)
        stacked = {name: t[0].clone() if name in common else t.contiguous() for name, t in made.items()}
        ensemble = cls.__new__(cls)
        nn.Module.__init__(ensemble)
        ensemble._set(example, stacked, common, count, in_dims, out_dims, randomness, chunk_size)
        return ensemble

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call every member; keyword arguments are the same for all."""
        places = places_of(self.module)
        tensors = [place.now for place in places]
        dims = [None if place.name in self.shared else 0 for place in places]
        given = self.in_dims if isinstance(self.in_dims, tuple | list) else [self.in_dims] * len(args)

        def member(tensors: list[Tensor], *args: Any) -> Any:
            with swapped(self.module, places, tensors):
                out = self.module(*args, **kwargs)
                for place, tensor in zip(places, tensors, strict=True):
                    if place.now is not tensor:
                        raise UnsupportedError(
                            f"Ensemble: the module assigns a new tensor to {place.name} in its forward. Instead: write "
                            f"in place, self.{place.key}.copy_(...)."
                        )
                return out

        call = vmap(
            member, (dims, *given), self.out_dims, self.randomness, chunk_size=self.chunk_size, axis_size=self.count
        )
        return call(tensors, *args)

    def __len__(self) -> int:
        """Return the number of members."""
        return self.count

    def __getitem__(self, i: int) -> nn.Module:
        """Return a member as a module of its own, with copies of its parameters and buffers."""
        if not -self.count <= i < self.count:
            raise IndexError(f"Ensemble: member {i} of {self.count}")
        state = _state(self.module)
        return _filled(self.module, {n: (t if n in self.shared else t[i]).detach().clone() for n, t in state.items()})

    def __iter__(self) -> Iterator[nn.Module]:
        """Iterate over the members, as `__getitem__` gives them."""
        return (self[i] for i in range(self.count))

    def extra_repr(self) -> str:
        """Show the number of members."""
        return f"members={self.count}"


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; one that has several names appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _select(state: dict[str, Tensor], shared: Sequence[str]) -> set[str]:
    """Return the names that ``shared`` names, or that lie in a submodule it names."""
    if isinstance(shared, str):
        shared = (shared,)
    chosen = {n for n in state for s in shared if n == s or n.startswith(s + ".")}
    unknown = [s for s in shared if not any(n == s or n.startswith(s + ".") for n in chosen)]
    if unknown:
        raise ValueError(f"Ensemble: no parameter, buffer or submodule is named {unknown}; there are {sorted(state)}")
    return chosen


def _check_alike(first: nn.Module, other: nn.Module, i: int) -> None:
    mine, theirs = _state(first), _state(other)
    if _layout(first) != _layout(other) or mine.keys() != theirs.keys():
        raise ValueError(f"Ensemble: module {i}, {other}, is not built like module 0, {first}")
    if first.training != other.training:
        raise ValueError(
            f"Ensemble: module {i} is in {'training' if other.training else 'evaluation'} mode, module 0 not"
        )
    for name, a in mine.items():
        b = theirs[name]
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            raise ValueError(
                f"Ensemble: {name} of module {i} is {tuple(b.shape)}, {b.dtype}, {b.device}, of module 0 {tuple(a.shape)}, "
                f"{a.dtype}, {a.device}"
            )


def _layout(module: nn.Module) -> list[tuple[str, str]]:
    """Return names and classes of all parts; a parametrized module has a class of its own, of the same name."""
    return [(name, type(part).__qualname__) for name, part in module.named_modules()]


def _filled(template: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """Copy a module, with other parameters and buffers; those that were tied stay tied."""
    memo: dict[int, Any] = {}
    for name, old in _state(template).items():
        new = tensors[name].detach()
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return copy.deepcopy(template, memo)
