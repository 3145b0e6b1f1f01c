"""How near is near enough: as near as low precision comes anyway, not as near as a tolerance that somebody chose."""

import torch
from torch import Tensor

FLOOR = 1e-6


def assert_close_as_low_precision(
    actual: Tensor, exact: Tensor, plain: Tensor, *, factor: float = 2.0, floor: float = FLOOR
) -> None:
    """Hold `actual` to `factor` times the error of a plain run of the same mathematics in low precision.

    `exact` is computed in float32 or float64 from the same inputs; `plain` in the type that `actual` has, by torch.
    Both the largest error and the root of the mean square are compared; `floor` is granted on top, relative to the
    largest exact value (at least 1). Infinities and NaN must stand where `exact` has them; where only the plain run
    overflows, it grants nothing.
    """
    assert actual.shape == exact.shape == plain.shape, (actual.shape, exact.shape, plain.shape)
    actual, exact, plain = (tensor.detach().cpu().double() for tensor in (actual, exact, plain))
    finite = exact.isfinite()

    assert torch.equal(actual.isfinite(), finite), "not finite where it should be, or the other way round"
    assert torch.equal(actual[~finite].nan_to_num(), exact[~finite].nan_to_num())

    if not finite.any():
        return
    granted = floor * max(1.0, exact[finite].abs().max().item())
    ours, theirs = (actual - exact)[finite].abs(), (plain - exact)[finite].abs().nan_to_num(0, 0)
    where = tuple(finite.nonzero()[ours.argmax()].tolist())

    assert ours.max() <= factor * theirs.max() + granted, (
        f"largest error {ours.max():.3g} at {where} (got {actual[where]:.6g}, exact {exact[where]:.6g}); "
        f"plain low precision has {theirs.max():.3g}"
    )
    ours_rms, theirs_rms = ours.square().mean().sqrt(), theirs.square().mean().sqrt()

    assert ours_rms <= factor * theirs_rms + granted, (
        f"root mean square error {ours_rms:.3g}; plain low precision has {theirs_rms:.3g}"
    )
