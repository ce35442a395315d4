"""Plans: what runs the calls of one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..levels.level import Level

Plan = Callable[[Level, tuple[Any, ...], dict[str, Any]], Any]
