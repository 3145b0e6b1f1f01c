"""The hands on a GPU, or on what emulates one: a decoder of our own kernels, its KV blocks, and one pass a step."""

from pathlib import Path

import torch
from torch import Tensor

from engine.batch import Batch, Row, Sampled
from engine.device import Device
from engine.device_attention import MAX_DECODE_TOKENS, DevicePools, StepAttention
from engine.device_sampler import DeviceSampler
from engine.errors import ModelError
from engine.graphs import DecodeGraphs, graph_sizes
from engine.inputs import lay_out
from engine.kernels.paged_decode import HEAD_DIMS
from engine.memory import blocks_that_fit, check_weights
from engine.models.config import ModelConfig, load_config
from engine.models.device_decoder import DeviceDecoder
from engine.models.weights import load_weights
from engine.params import SamplingParams
from engine.sequence import Sequence

BLOCK_SIZE = 16
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class CudaRunner:
    """A `Runner` on a `Device`. Owns the weights and the KV pool; one thread at a time may call `run`."""

    def __init__(
        self,
        device: Device,
        model: DeviceDecoder,
        *,
        num_blocks: int,
        max_sequences: int = 128,
        deterministic: bool = False,
    ) -> None:
        config = model.config
        self.num_blocks = num_blocks
        self.block_size = BLOCK_SIZE
        self.max_model_len = model.num_positions
        self.vocab_size = config.vocab_size
        self._device = device
        self._model = model
        self._pools = DevicePools(
            device, config, model.dtype, num_blocks=num_blocks, block_size=BLOCK_SIZE, deterministic=deterministic
        )
        self._graphs = DecodeGraphs(device, model, self._pools, max_sequences)
        self._sampler = DeviceSampler(device)

    def run(self, batch: Batch) -> list[Sampled]:
        """See `engine.batch.Runner`."""
        try:
            return self._run(sorted(batch.rows, key=_is_chunk), batch)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    def forget(self, sequence: Sequence) -> None:
        """See `engine.batch.Runner`."""
        self._sampler.forget(sequence)

    def rehearse(self, num_tokens: int, num_sequences: int) -> None:
        """Run a step of one prompt's chunk and so many decodes, whose tokens are all written to the first block."""
        num_tokens = min(num_tokens, self.max_model_len)
        greedy = SamplingParams(max_tokens=1, temperature=0.0)

        def row(num_tokens: int) -> Row:
            sequence = Sequence("rehearsal", 0, [0] * num_tokens, num_tokens, greedy)
            sequence.block_table = [0] * -(-num_tokens // BLOCK_SIZE)
            return Row(sequence, 0, num_tokens, True)

        rows = (*(row(1) for _ in range(num_sequences)), row(num_tokens))
        self.run(Batch(rows, sum(row.count for row in rows)))

    def _run(self, rows: list[Row], batch: Batch) -> list[Sampled]:
        sampling = [row for row in rows if row.samples]
        with torch.inference_mode():
            if len(sampling) == len(rows) <= self._graphs.max_sequences and not _is_chunk(rows[-1]):
                logits, order = self._graphs.run(rows)
                sampling = [rows[index] for index in order]
            else:
                logits = self._compute(rows)
            if not sampling:
                return []
            results = self._sampler.sample(logits, [row.sequence for row in sampling])
        by_row = {id(row): result for row, result in zip(sampling, results, strict=True)}
        return [by_row[id(row)] for row in batch.rows if row.samples]

    def _compute(self, rows: list[Row]) -> Tensor:
        """Compute rows of any length, the decodes first. `[sampling rows, vocab]`, or hidden states where none does."""
        inputs = lay_out(self._device, rows, BLOCK_SIZE, MAX_DECODE_TOKENS)
        hidden = self._model.forward(inputs.ids, StepAttention(self._pools, inputs), inputs.wanted)
        return self._model.logits(hidden) if hidden.shape[0] else hidden


def _is_chunk(row: Row) -> bool:
    return row.count > MAX_DECODE_TOKENS


def load_cuda_runner(
    device: Device,
    directory: Path,
    *,
    dtype: str = "auto",
    num_blocks: int | None = None,
    max_model_len: int | None = None,
    max_batch_tokens: int = 512,
    max_sequences: int = 128,
    deterministic: bool = False,
) -> CudaRunner:
    """Load a Hugging Face directory. `dtype` is auto (the checkpoint's), bfloat16 or float16. Raises `ModelError`.

    `max_model_len` can shorten the model's context, not stretch it. Without `num_blocks` the KV pool takes what memory
    a GPU has left beside a step of `max_batch_tokens` for `max_sequences`, which is run once to see.
    `deterministic`: see `DevicePools`.
    """
    config = load_config(directory)
    chosen = DTYPES[choose_dtype(config, dtype)]
    check_model(config)
    num_positions = min(max_model_len or config.max_positions, config.max_positions)
    if num_blocks is None:
        check_weights(config, chosen.itemsize, free_bytes(device))
    weights = load_weights(directory, config, chosen, device.upload)
    model = DeviceDecoder(device, config, weights, num_positions)
    if num_blocks is None:
        num_blocks = _measure(device, model, max_batch_tokens, max_sequences)
    return CudaRunner(device, model, num_blocks=num_blocks, max_sequences=max_sequences, deterministic=deterministic)


def free_bytes(device: Device) -> int:
    """How much of a GPU's memory nobody holds, what torch keeps for reuse included. Raises `ModelError` elsewhere."""
    if device.torch_device.type != "cuda":
        raise ModelError(f"num_blocks: expected a number, since {device.name} has no memory of its own; got none")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device.torch_device)[0]


def _measure(device: Device, model: DeviceDecoder, max_batch_tokens: int, max_sequences: int) -> int:
    """Run the largest step over a few blocks, and see how many blocks there is room for beside it."""
    config, free = model.config, free_bytes(device)
    block_bytes = config.kv_elements_per_token * BLOCK_SIZE * model.dtype.itemsize
    few = CudaRunner(device, model, num_blocks=1)
    torch.cuda.reset_peak_memory_stats(device.torch_device)
    before = torch.cuda.memory_allocated(device.torch_device)
    few.rehearse(max_batch_tokens, max_sequences)
    step_bytes = torch.cuda.max_memory_allocated(device.torch_device) - before
    step_bytes += sum(graph_sizes(max_sequences)) * config.vocab_size * model.dtype.itemsize  # each keeps its logits
    return blocks_that_fit(free, step_bytes, block_bytes, -(-model.num_positions // BLOCK_SIZE))


def check_model(config: ModelConfig) -> None:
    """Refuse a model whose sizes the kernels are not made for. Raises `ModelError` naming the size."""
    if config.head_dim not in HEAD_DIMS:
        raise ModelError(f"head_dim: expected one of {', '.join(map(str, HEAD_DIMS))} on a GPU, got {config.head_dim}")
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % 8:
            raise ModelError(f"{name}: expected a multiple of 8 on a GPU, got {getattr(config, name)}")


def choose_dtype(config: ModelConfig, asked: str) -> str:
    """Say what `auto` means: what the checkpoint is stored in, and bfloat16 for float32. Raises `ModelError`."""
    if asked == "auto":
        return config.dtype if config.dtype in DTYPES else "bfloat16"
    if asked not in DTYPES:
        raise ModelError(f"dtype: expected auto, {', '.join(DTYPES)} on a GPU, got {asked!r}")
    return asked
