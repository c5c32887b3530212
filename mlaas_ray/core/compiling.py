"""Compiling: kernels of numba without what other packages teach it."""

from __future__ import annotations

import sys
from typing import Any


def alone(kernel: Any) -> Any:
    """Let a function of ``numba.njit`` be compiled, or loaded, without numba's extensions.

    Before its first compilation numba imports every package that extends it: vector, and with it sympy, cost
    a CPU second in each process, for types that none of our kernels takes. A user's own function that is
    compiled in the same process afterwards has them.
    """
    extensions: Any = sys.modules["numba.core.entrypoints"]
    compiled = kernel.compile

    def compile_alone(signature: Any) -> Any:
        loaded = extensions._already_initialized
        extensions._already_initialized = True
        try:
            return compiled(signature)
        finally:
            extensions._already_initialized = loaded

    kernel.compile = compile_alone
    kernel._compilation_chain_init_hook = lambda: None
    return kernel
