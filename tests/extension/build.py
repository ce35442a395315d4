"""Compiling the extension, once for each PyTorch and Python."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("calls.cpp")


@functools.cache
def why_not() -> str | None:
    """Return why the extension cannot be compiled here; None if it can."""
    if not cpp_extension.is_ninja_available():
        return "ninja, which builds PyTorch's extensions, is not installed"
    compiler = cpp_extension.get_cxx_compiler()
    return None if shutil.which(compiler) else f"there is no C++ compiler ({compiler})"


@functools.cache
def extension() -> Any:
    """Return the extension's module; compiled where no process has done so before, which takes half a minute.

    It goes where PyTorch puts the extensions that it compiles, under a name that says what it was made of.
    """
    made_of = f"{SOURCE.read_text()} {torch.__version__} {sys.version} {torch.compiled_with_cxx11_abi()}"
    name = f"vmap_extension_{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    folder = Path(cpp_extension.get_default_build_root()) / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "in-turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "lock").unlink(
            missing_ok=True
        )  # PyTorch's own, of a process that was stopped: it would wait for ever
        return cpp_extension.load(name, [str(SOURCE)], build_directory=str(folder), extra_cflags=["-O0"])
