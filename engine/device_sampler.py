"""Logits to tokens on a device: the law of `sampler.py`, drawn by kernels, and one copy back.

A step's parameters are columns of one row a sequence, brought to the device by one copy:

    | top_p | seed | position | temperature | top_k | min_p | choice | lists: starts, then what rows have of them |
      each from a multiple of 16 bytes on                              penalties, biases, bans, asked log-probabilities

Where no row has penalties, biases or bans the lists stay empty. The host waits once, for the tokens.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Logprobs, Sampled
from engine.device import Device
from engine.kernels.logits import Bans, Biases, Penalties, logits
from engine.kernels.logprobs import logprobs
from engine.kernels.sample import NOT_FINITE, Draws, sample
from engine.sequence import Sequence
from engine.token_counts import TokenCounts, forbidden, is_penalised

ALIGNMENT = 16
"""Of a column's first byte: kernels read pairs and eight-byte numbers at once."""

WHY = {NOT_FINITE: "the model gave logits that are not finite"}


class DeviceSampler:
    """Draws the next token of each row. Keeps counts of the sequences it serves until `forget`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._counts = TokenCounts()

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence. It is made again when needed, and comes out the same."""
        self._counts.forget(sequence)

    def sample(self, raw: Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
        """`raw: [rows, vocab]` on the device, in the model's type. The token drawn for a row follows its last one.

        A row whose logits are not all finite comes back with `error` and no token.
        """
        device, (rows, vocab) = self._device, raw.shape
        columns = _Columns()
        self._add_draws(columns, sequences)
        lists = self._add_lists(columns, sequences, vocab)
        asked = [(row, each.params.logprobs) for row, each in enumerate(sequences) if each.params.logprobs is not None]
        if asked:
            columns.add(np.int32, [row for row, _ in asked])
            columns.add(np.int32, [number for _, number in asked])
        tensors = iter(columns.bring(device))
        top_ps, seeds, positions, temperatures, top_ks, min_ps, choices = (next(tensors) for _ in range(7))
        law = device.empty((rows, vocab), torch.float32)
        penalties = Penalties(*(next(tensors) for _ in range(5))) if lists.penalties else None
        biases = Biases(*(next(tensors) for _ in range(3))) if lists.biases else None
        bans = Bans(*(next(tensors) for _ in range(2))) if lists.bans else None
        logits(device, law, raw, temperatures, penalties=penalties, biases=biases, bans=bans)
        drawn = device.empty((2, rows), torch.int32)
        draws = Draws(temperatures, top_ks, top_ps, min_ps, seeds, positions, choices)
        sample(device, drawn[0], drawn[1], law, draws)
        told = self._tell(raw, drawn[0], asked, next(tensors), next(tensors)) if asked else {}
        tokens, errors = drawn.cpu().tolist()
        return [
            Sampled((), error=WHY.get(error, "no token may come here"))
            if error
            else Sampled((token,), (told[row],) if row in told else None)
            for row, (token, error) in enumerate(zip(tokens, errors, strict=True))
        ]

    def _add_draws(self, columns: "_Columns", sequences: Seq[Sequence]) -> None:
        params = [sequence.params for sequence in sequences]
        columns.add(np.float64, [each.top_p for each in params])
        columns.add(np.uint64, [each.seed & 0xFFFFFFFFFFFFFFFF for each in params])
        columns.add(np.int64, [len(sequence.token_ids) for sequence in sequences])
        columns.add(np.float32, [each.temperature for each in params])
        columns.add(np.int32, [each.top_k for each in params])
        columns.add(np.float32, [each.min_p for each in params])
        columns.add(np.int32, [sequence.index for sequence in sequences])

    def _add_lists(self, columns: "_Columns", sequences: Seq[Sequence], vocab: int) -> "_Lists":
        params = [sequence.params for sequence in sequences]
        bans = [forbidden(sequence, vocab) for sequence in sequences]
        lists = _Lists(any(map(is_penalised, params)), any(each.logit_bias for each in params), any(bans))
        if lists.penalties:
            seen = [self._seen(sequence) for sequence in sequences]
            columns.add(np.int32, _starts(map(len, seen)))
            columns.add(np.int32, [pair for row in seen for pair in row], width=2)
            columns.add(np.float32, [each.repetition_penalty for each in params])
            columns.add(np.float32, [each.presence_penalty for each in params])
            columns.add(np.float32, [each.frequency_penalty for each in params])
        if lists.biases:
            columns.add(np.int32, _starts(len(each.logit_bias) for each in params))
            columns.add(np.int32, [token for each in params for token in each.logit_bias])
            columns.add(np.float32, [bias for each in params for bias in each.logit_bias.values()])
        if lists.bans:
            columns.add(np.int32, _starts(map(len, bans)))
            columns.add(np.int32, [token for row in bans for token in row])
        return lists

    def _seen(self, sequence: Sequence) -> list[tuple[int, int]]:
        """What a sequence has said, as `Penalties` wants it."""
        if not is_penalised(sequence.params):
            return []
        counts = self._counts.of(sequence)
        answered = [(token, 2 * times + (token in counts.prompt)) for token, times in counts.answer.items()]
        return answered + [(token, 1) for token in counts.prompt if token not in counts.answer]

    def _tell(
        self, raw: Tensor, tokens: Tensor, asked: list[tuple[int, int]], rows: Tensor, numbers: Tensor
    ) -> dict[int, Logprobs]:
        device = self._device
        most = min(max(1, max(number for _, number in asked)), raw.shape[1])
        chosen = device.empty((len(asked),), torch.float32)
        ids, values = (device.empty((len(asked), most), dtype) for dtype in (torch.int32, torch.float32))
        logprobs(device, chosen, ids, values, raw, tokens, rows, numbers)
        told = zip(asked, chosen.cpu().tolist(), ids.cpu().tolist(), values.cpu().tolist(), strict=True)
        return {
            row: Logprobs(of_chosen, tuple(zip(top_ids[:number], top_values[:number], strict=True)))
            for (row, number), of_chosen, top_ids, top_values in told
        }


class _Lists:
    """Which lists there are."""

    __slots__ = ("bans", "biases", "penalties")

    def __init__(self, penalties: bool, biases: bool, bans: bool) -> None:
        self.penalties = penalties
        self.biases = biases
        self.bans = bans


class _Columns:
    """Arrays that go to the device together, each from a multiple of `ALIGNMENT` on."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.generic]] = []

    def add(self, dtype: type[np.generic], values: Seq[object], *, width: int = 0) -> None:
        array = np.array(values, dtype)
        self._arrays.append(array.reshape(-1, width) if width else array)

    def bring(self, device: Device) -> list[Tensor]:
        """Copy them; give each as a tensor on the device."""
        starts, size = [], 0
        for array in self._arrays:
            starts.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        together = np.zeros(size, np.uint8)
        for array, start in zip(self._arrays, starts, strict=True):
            together[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        staged = device.upload(torch.from_numpy(together))
        return [
            staged[start : start + array.nbytes].view(TORCH[array.dtype.str]).view(array.shape)
            for array, start in zip(self._arrays, starts, strict=True)
        ]


TORCH = {"<f8": torch.float64, "<u8": torch.int64, "<i8": torch.int64, "<f4": torch.float32, "<i4": torch.int32}


def _starts(lengths: Iterable[int]) -> list[int]:
    return [0, *accumulate(lengths)]
