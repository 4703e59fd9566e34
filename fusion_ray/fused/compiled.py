"""The one door to numba: every loop of this package that numpy cannot express is compiled through it."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., object])


def compiled(loop: Loop) -> Loop:
    """Compile a loop to machine code on its first call and keep the code in `__pycache__`; it releases the GIL."""
    return cast(Loop, numba.njit(cache=True, nogil=True)(loop))
