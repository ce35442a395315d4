"""torch.func's transforms: whether they are active, and running without them."""

from __future__ import annotations

from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped
from torch._functorch.eager_transforms import enable_inplace_requires_grad
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as without_transforms
from torch._functorch.pyfunctorch import temporarily_restore_interpreter_stack as with_transforms

__all__ = ["enable_inplace_requires_grad", "is_wrapped", "transforms_active", "with_transforms", "without_transforms"]
