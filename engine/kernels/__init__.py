"""The engine's own CUDA kernels: their table, their compiler and cache, and how they are launched and emulated."""
