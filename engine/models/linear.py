"""A matrix product whose weight is laid out once for the processor that will run it.

On a CPU, oneDNN's blocked layout avoids a reordering in every call and fuses the residual addition; measured on two
Zen 5 cores, 16 rows times [4096, 768] take 232 µs in float32 (F.linear: 830) and 128 µs in bfloat16 (F.linear: 303).
Its call costs about 12 µs before any work, so small products take a plain matrix product (3 µs) on a second,
transposed copy. Elsewhere (a device, or a build without oneDNN) the weight stays as it is.

oneDNN prepares each product once for its shape: code for it is made in 0.4 ms and 0.6 MB, and kept. The rows of steps
are of every number there is, and left to itself it keeps 1024 of them: 93 MB in use became 526 and the process's
size 1.8 GB, once lines of 1 to 512 rows had gone through the five products of a small model. So a small weight, whose
product takes less time than that, is multiplied by some rows of zeros more, such that there are few numbers; and of
what is prepared less is kept (`keep_few_prepared`).
"""

import os

import torch
from torch import Tensor
from torch.nn import functional

PLAIN_WORK = 200_000
"""Rows times elements of the weight up to which a plain float32 product beats the packed one's cost of calling."""

ROUNDED_WEIGHT = 1_000_000
"""Elements of a weight up to which rows are rounded: an eighth of them costs less than to prepare another product."""

FUSED_ROWS = 16
"""So many rows are never rounded, and up to them a residual is added within the product."""

PREPARED = 256
"""How many prepared products are kept, of 0.6 MB: more than one small model has up to 300 rows."""


def keep_few_prepared() -> None:
    """Bound what oneDNN keeps prepared, unless the environment does. Works before the process's first product.

    There are two caches that refer to the same: its own, and one of torch's binding (ideep).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PREPARED))


def rounded(rows: int) -> int:
    """Round up to one of few numbers of rows: all up to 16, then eight in each doubling, at most an eighth more."""
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


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
        self._rounds = weight.numel() <= ROUNDED_WEIGHT
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
        rows = x.shape[0]
        more = rounded(rows) - rows if self._rounds else 0
        if more:
            x = functional.pad(x, (0, 0, 0, more))
        out: Tensor = self._run(x, self._packed, self.bias, "none", [], "")
        return out[:rows] if more else out

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Give `residual + self(x)`. May reuse the residual's memory: the caller must not read it again."""
        if x.shape[0] <= self._plain_rows:
            assert self._plain is not None
            if self.bias is not None:
                residual += self.bias
            return residual.addmm_(x, self._plain)
        if self._packed is None:
            return residual.add_(functional.linear(x, self._weight, self.bias))
        if self._rounds and x.shape[0] > FUSED_ROWS:
            return residual.add_(self(x))
        out: Tensor = self._run_binary(x, residual, self._packed, self.bias, "add")
        return out
