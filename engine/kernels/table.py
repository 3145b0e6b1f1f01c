"""Every kernel instance there is: what `kernels build` compiles and the tests hold to its limits.

Each stem adds its line; page sizes, windows and lengths are arguments at run time, not instances.
"""

from engine.kernels.registry import Instance

INSTANCES: tuple[Instance, ...] = ()

MAX_INSTANCES = 150
