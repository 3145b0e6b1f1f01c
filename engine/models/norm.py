"""The norm before each half of a layer: divide by the root mean square, multiply by a learned weight."""

import torch
from torch import Tensor
from torch.nn import functional


class Norm:
    """`x / sqrt(mean(x²) + ε) · w` over the last dimension.

    On a CPU `rms_norm` is a chain of operations; in float32 the mean and ε fit into one matrix product with a column of
    1/n, which makes the chain shorter.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps
        self._shape = weight.shape
        self._by_hand = weight.dtype is torch.float32 and weight.device.type == "cpu"
        self._eps_tensor = torch.tensor(eps, dtype=weight.dtype)
        self._mean = torch.full((len(weight), 1), 1 / len(weight), dtype=weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """`x: [rows, size]`, or with more dimensions in front, which is slower."""
        if self._by_hand and x.dim() == 2:
            return (x * torch.addmm(self._eps_tensor, x.square(), self._mean).rsqrt_()).mul_(self.weight)
        return functional.rms_norm(x, self._shape, self.weight, self.eps)
