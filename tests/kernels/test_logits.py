"""What is done to logits before a draw is, bit by bit, what the CPU sampler does."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.logits import FLOATS, PADDING, PIECE, Bans, Biases, Penalties, logits, logits_reference
from engine.params import SamplingParams
from engine.sampler import Sampler
from engine.sequence import Sequence
from tests.kernels.sampling_rows import edits_of, params_of

INF = float("inf")


def rows_of(num_rows: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4).to(dtype)


def any_sequences(num_rows: int, vocab: int, seed: int, **fields: object) -> list[Sequence]:
    """Give sequences that ask for everything at once, with tokens at both ends of pieces and of the vocabulary."""
    rng = np.random.default_rng(seed)
    edges = [token for token in (0, PIECE - 1, PIECE, vocab - 1) if token < vocab]
    found = []
    for _ in range(num_rows):
        params = params_of(
            repetition_penalty=float(rng.choice([1.0, 1.3, 0.7])),
            presence_penalty=float(rng.choice([0.0, 0.9, -1.1])),
            frequency_penalty=float(rng.choice([0.0, 0.3, -0.7])),
            logit_bias={int(token): float(rng.normal()) for token in [*rng.integers(0, vocab, 5), *edges]},
            min_tokens=int(rng.integers(0, 60)),
            stop_token_ids=frozenset(int(token) for token in [*rng.integers(0, vocab, 3), *rng.permutation(edges)[:2]]),
            temperature=float(rng.choice([0.0, 1.0, 0.7, 1.9, 1e-9])),
        )
        tokens = [*rng.integers(0, vocab, 30).tolist(), *edges, *rng.integers(0, min(vocab, 9), 20).tolist(), *edges]
        found.append(Sequence("a", 0, tokens, 25, dataclasses.replace(params, **fields)))
    return found


def run(
    device: Device,
    raw: Tensor,
    temperatures: Tensor,
    edits: tuple[Penalties, Biases, Bans] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Give the kernel's output, -9 where nothing was written."""
    out = device.upload(torch.full(raw.shape, -9.0))
    penalties, biases, bans = edits or (None, None, None)
    logits(
        device,
        out,
        device.upload(raw),
        device.upload(temperatures),
        penalties=penalties,
        biases=biases,
        bans=bans,
        allowed=None if allowed is None else device.upload(allowed),
    )
    device.synchronize()
    return out.cpu()


def host(edits: tuple[Penalties, Biases, Bans]) -> tuple[Penalties, Biases, Bans]:
    """Bring lists back to torch's own memory."""
    penalties, biases, bans = (
        dataclasses.replace(kind, **{field.name: getattr(kind, field.name).cpu() for field in dataclasses.fields(kind)})
        for kind in edits
    )
    return penalties, biases, bans


def mask_of(num_rows: int, vocab: int, seed: int) -> Tensor:
    words = -(-vocab // 32)
    return torch.randint(-(2**31), 2**31, (num_rows, words), generator=torch.Generator().manual_seed(seed)).int()


def check(device: Device, num_rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> None:
    """Compare with the reference: everything at once, with a mask and without, and nothing but the temperature."""
    raw, sequences = rows_of(num_rows, vocab, dtype, seed), any_sequences(num_rows, vocab, seed)
    temperatures = torch.tensor([sequence.params.temperature for sequence in sequences])
    edits = edits_of(device, sequences, vocab)
    for given, allowed in ((edits, mask_of(num_rows, vocab, seed)), (edits, None), (None, None)):
        expected = logits_reference(raw, temperatures, *(host(given) if given else (None, None, None)), allowed)

        assert torch.equal(run(device, raw, temperatures, given, allowed), expected)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 3, 97, torch.bfloat16)  # one word more than whole words of bits
    check(device, 2, PIECE + 33, torch.float32)
    check_failures(device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab"), [(9, 17), (4, 300), (2, PIECE), (2, 2 * PIECE + 5)])
def test_every_step_is_the_references_bit_by_bit(device: Device, num_rows: int, vocab: int, dtype: torch.dtype) -> None:
    check(device, num_rows, vocab, dtype)


def edited_on_cpu(raw: Tensor, sequence: Sequence) -> Tensor:
    """Give what the CPU sampler makes of logits; it works in place."""
    copy = raw.clone()[None]
    Sampler().sample(copy, [sequence])
    return copy[0]


def test_penalties_biases_and_bans_are_the_cpu_samplers(device: Device) -> None:
    raw, sequences = rows_of(12, 40), any_sequences(12, 40, seed=3, temperature=0.0)
    expected = torch.stack([edited_on_cpu(row, sequence) for row, sequence in zip(raw, sequences, strict=True)])

    assert torch.equal(run(device, raw, torch.zeros(12), edits_of(device, sequences, 40)), expected)


def test_penalties_biases_and_bans_are_the_cpu_samplers_a_thousand_times(emulator: EmulatedDevice) -> None:
    raw, sequences = rows_of(1000, 50, seed=1), any_sequences(1000, 50, seed=4, temperature=0.0)
    expected = torch.stack([edited_on_cpu(row, sequence) for row, sequence in zip(raw, sequences, strict=True)])

    assert torch.equal(run(emulator, raw, torch.zeros(1000), edits_of(emulator, sequences, 50)), expected)


def check_failures(device: Device) -> None:
    """What is not finite stays visible, though its token be banned, and no other row sees it."""
    raw = rows_of(5, 64)
    sequences = any_sequences(5, 64, seed=5, min_tokens=10_000, stop_token_ids=frozenset({7, 8}))
    edits, temperatures = edits_of(device, sequences, 64), torch.full((5,), 0.5)
    clean = run(device, raw, temperatures, edits)
    raw[0, 7], raw[2, 8], raw[3, 63] = torch.nan, INF, -INF
    out = run(device, raw, temperatures, edits, torch.zeros(5, 2).int())

    assert out.isnan().nonzero().tolist() == [[0, 7], [2, 8], [3, 63]]
    assert torch.equal(out.isinf(), ~out.isnan())

    out = run(device, raw, temperatures, edits)

    assert out.isnan().nonzero().tolist() == [[0, 7], [2, 8], [3, 63]]
    assert torch.equal(out[[1, 4]], clean[[1, 4]])


def test_what_is_not_finite_stays_visible_in_its_row(device: Device) -> None:
    check_failures(device)


def test_padding_is_left_alone_whatever_its_lists_say(device: Device) -> None:
    raw, sequences = rows_of(3, 100), any_sequences(3, 100, seed=6)
    raw[1] = torch.nan
    out = run(device, raw, torch.tensor([0.0, PADDING, 0.0]), edits_of(device, sequences, 100))

    assert torch.equal(out[1], torch.full((100,), -9.0))
    assert out[[0, 2]].gt(-1e9).any(-1).all()


def test_the_result_may_take_the_place_of_float32_logits_and_rows_may_be_apart(device: Device) -> None:
    raw, sequences = rows_of(2, PIECE + 9), any_sequences(2, PIECE + 9, seed=7)
    temperatures, edits = torch.tensor([0.8, 0.0]), edits_of(device, sequences, PIECE + 9)
    apart = run(device, raw, temperatures, edits)
    store = device.upload(torch.full((2, PIECE + 20), torch.nan))
    store[:, : PIECE + 9] = device.upload(raw)
    in_place = store[:, : PIECE + 9]
    penalties, biases, bans = edits
    logits(device, in_place, in_place, device.upload(temperatures), penalties=penalties, biases=biases, bans=bans)
    device.synchronize()

    assert torch.equal(in_place.cpu(), apart)
    assert store[:, PIECE + 9 :].isnan().all()


def test_a_row_has_the_same_bits_alone_and_in_company(device: Device) -> None:
    raw, sequences = rows_of(4, 500), any_sequences(4, 500, seed=8)
    temperatures = torch.tensor([sequence.params.temperature for sequence in sequences])
    together = run(device, raw, temperatures, edits_of(device, sequences, 500))
    alone = run(device, raw[2:3], temperatures[2:3], edits_of(device, sequences[2:3], 500))

    assert torch.equal(together[2:3], alone)


def test_shapes_that_do_not_fit_are_refused(emulator: EmulatedDevice) -> None:
    raw, out = emulator.zeros((2, 64), torch.float32), emulator.zeros((2, 64), torch.float32)
    temperatures = emulator.zeros((2,), torch.float32)
    with pytest.raises(ShapeError, match="temperatures"):
        logits(emulator, out, raw, temperatures[:1])
    with pytest.raises(ShapeError, match="dense rows"):
        logits(emulator, out[:, ::2], raw[:, ::2], temperatures)
    with pytest.raises(ShapeError, match="out"):
        logits(emulator, out.to(torch.bfloat16), raw, temperatures)
    with pytest.raises(ShapeError, match="allowed"):
        logits(emulator, out, raw, temperatures, allowed=emulator.zeros((2, 1), torch.int32))
    sequences = [Sequence("a", 0, [1, 2], 1, SamplingParams(max_tokens=1)) for _ in range(3)]
    penalties, biases, bans = edits_of(emulator, sequences, 64)
    with pytest.raises(ShapeError, match=r"penalties\.starts"):
        logits(emulator, out, raw, temperatures, penalties=penalties)
    with pytest.raises(ShapeError, match=r"biases\.starts"):
        logits(emulator, out, raw, temperatures, biases=biases)
    with pytest.raises(ShapeError, match=r"bans\.starts"):
        logits(emulator, out, raw, temperatures, bans=bans)
