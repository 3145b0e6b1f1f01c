"""What launch functions ask of their tensors, cheaply, before a kernel reads past them."""

import torch
from torch import Tensor

from engine.errors import ShapeError


def check(
    kernel: str, name: str, tensor: Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype, dense: bool = True
) -> None:
    """Hold a tensor to a shape, where None is any size, to one of these types and, if `dense`, to contiguity.

    Raises `ShapeError`.
    """
    given = tensor.shape
    fits = (
        len(given) == len(shape)
        and all(want is None or want == got for want, got in zip(shape, given, strict=True))
        and tensor.dtype in dtypes
        and (not dense or tensor.is_contiguous())
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        types = " or ".join(map(str, dtypes))
        raise ShapeError(
            kernel,
            name,
            f"[{sizes}] {types}{', contiguous' if dense else ''}",
            f"{list(given)} {tensor.dtype}{'' if tensor.is_contiguous() else f' with strides {list(tensor.stride())}'}",
        )
