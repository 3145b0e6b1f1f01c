"""The hands on a CPU: a decoder, a pool of KV blocks, and one forward pass a step over every row of the batch."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from engine.attention import PagedAttention
from engine.batch import Batch, Row, Sampled
from engine.decodes import Decodes
from engine.errors import ModelError
from engine.kv_pool import KeyValuePool
from engine.models.config import ModelConfig, load_config
from engine.models.decoder import Decoder, load_decoder
from engine.models.linear import keep_few_prepared
from engine.sampler import Sampler
from engine.sequence import Sequence
from engine.threads import threads_for

BLOCK_SIZE = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGE_PARAMETERS = 40_000_000

KEEP_BYTES = 512 << 20
"""How much memory the decodes' gathered keys and values may take beside the pool, and at the most half its size."""


class CpuRunner:
    """A `Runner` in torch. Owns the weights and the KV pool; one thread at a time may call `run`.

    `kv_bytes` bounds the pool's memory; copies for the running decodes take at the most half as much besides. A
    sequence may get as long as the model has positions.
    """

    def __init__(self, model: Decoder, *, kv_bytes: int) -> None:
        config = model.config
        per_block = config.kv_elements_per_token * BLOCK_SIZE * model.dtype.itemsize
        self.num_blocks = kv_bytes // per_block - 1  # one more pads short rows
        if self.num_blocks < 1:
            raise ModelError(f"kv_bytes: expected at least {2 * per_block} for two blocks, got {kv_bytes}")
        self.block_size = BLOCK_SIZE
        self.max_model_len = model.num_positions
        self.vocab_size = config.vocab_size
        self._model = model
        self._pool = KeyValuePool(config, self.num_blocks, BLOCK_SIZE, model.dtype)
        self._decodes = Decodes(config, self._pool, min(kv_bytes // 2, KEEP_BYTES))
        self._sampler = Sampler()

    def run(self, batch: Batch) -> list[Sampled]:
        """See `engine.batch.Runner`."""
        try:
            return self._run(batch)
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise

    def _run(self, batch: Batch) -> list[Sampled]:
        # Decodes first and by length, so that those of one attention group stand next to each other.
        rows = sorted(batch.rows, key=_place)
        sampling = [row for row in rows if row.samples]
        with torch.inference_mode(), threads_for(batch.num_tokens * self._model.config.num_parameters):
            hidden = self._forward(rows)
            if not sampling:
                return []
            results = self._sampler.sample(self._model.logits(hidden), [row.sequence for row in sampling])
            for row, result in zip(sampling, results, strict=True):
                if result.error is not None:
                    self._pool.scrub(row.sequence.block_table)
        by_row = {id(row): result for row, result in zip(sampling, results, strict=True)}
        return [by_row[id(row)] for row in batch.rows if row.samples]

    def forget(self, sequence: Sequence) -> None:
        """See `engine.batch.Runner`."""
        self._sampler.forget(sequence)
        self._decodes.forget(sequence)

    def _forward(self, rows: list[Row]) -> torch.Tensor:
        """Compute every row; give the hidden state of each sampling row's last token."""
        ids = torch.tensor(
            list(chain.from_iterable(row.sequence.token_ids[row.start : row.start + row.count] for row in rows))
        )
        positions = torch.from_numpy(np.concatenate([np.arange(row.start, row.start + row.count) for row in rows]))
        lasts = np.cumsum([row.count for row in rows])[[row.samples for row in rows]] - 1
        wanted = torch.from_numpy(lasts) if len(lasts) < len(ids) else None
        attention = PagedAttention(self._model.config, self._pool, self._decodes, rows)
        return self._model.forward(ids, positions, attention, wanted)


def _place(row: Row) -> tuple[bool, int]:
    return row.count > 1, row.start


def choose_dtype(config: ModelConfig) -> str:
    """Say what `auto` means: bfloat16 for a large bfloat16 checkpoint on a processor that computes in it, else float32.

    What fits into the caches is faster in float32, and exact; what does not is bound by the memory that it reads.
    """
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    large = config.num_parameters >= LARGE_PARAMETERS
    return "bfloat16" if config.dtype == "bfloat16" and native and large else "float32"


def load_cpu_runner(
    directory: Path, *, dtype: str = "auto", kv_bytes: int = 1 << 30, max_model_len: int | None = None
) -> CpuRunner:
    """Load a Hugging Face directory. `dtype` is auto, float32 or bfloat16. Raises `ModelError`.

    `max_model_len` can shorten the model's context, not stretch it.
    """
    keep_few_prepared()
    config = load_config(directory)
    if dtype == "auto":
        dtype = choose_dtype(config)
    if dtype not in DTYPES:
        raise ModelError(f"dtype: expected auto, {', '.join(DTYPES)}, got {dtype!r}")
    num_positions = min(max_model_len or config.max_positions, config.max_positions)
    return CpuRunner(load_decoder(directory, config, DTYPES[dtype], num_positions), kv_bytes=kv_bytes)
