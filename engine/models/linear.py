"""A matrix product whose weight is laid out once for the processor that will run it.

On a CPU, oneDNN's blocked layout avoids a reordering in every call and fuses the residual addition; measured on two
Zen 5 cores, 16 rows times [4096, 768] take 232 µs in float32 (F.linear: 830) and 128 µs in bfloat16 (F.linear: 303).
Its call costs about 12 µs before any work, so small products take a plain matrix product (3 µs) on a second,
transposed copy. Elsewhere (a device, or a build without oneDNN) the weight stays as it is.
"""

import torch
from torch import Tensor
from torch.nn import functional

PLAIN_WORK = 200_000
"""Rows times elements of the weight up to which a plain float32 product beats the packed one's cost of calling."""


class Linear:
    """`y = x Wᵀ + b`. `weight: [outputs, inputs]`; it may be released by the caller afterwards."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self._weight = weight
        self._packed: Tensor | None = None
        self._plain: Tensor | None = None
        self._plain_rows = 0
        if weight.device.type != "cpu" or not torch._C._has_mkldnn:
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._weight = torch.empty(0)
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._run_binary = torch.ops.mkldnn._linear_pointwise.binary
        if weight.dtype is torch.float32 and weight.numel() <= PLAIN_WORK:
            self._plain = weight.t().contiguous()
            self._plain_rows = PLAIN_WORK // weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """`x: [rows, inputs]`, contiguous -> `[rows, outputs]`."""
        if x.shape[0] <= self._plain_rows:
            assert self._plain is not None
            return torch.mm(x, self._plain) if self.bias is None else torch.addmm(self.bias, x, self._plain)
        if self._packed is None:
            return functional.linear(x, self._weight, self.bias)
        out: Tensor = self._run(x, self._packed, self.bias, "none", [], "")
        return out

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Give `residual + self(x)`. May reuse the residual's memory: the caller must not read it again."""
        if x.shape[0] <= self._plain_rows:
            assert self._plain is not None
            if self.bias is not None:
                residual += self.bias
            return residual.addmm_(x, self._plain)
        if self._packed is None:
            return residual.add_(functional.linear(x, self._weight, self.bias))
        out: Tensor = self._run_binary(x, residual, self._packed, self.bias, "add")
        return out
