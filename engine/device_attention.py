"""Paged attention on a device, for a step that mixes decodes with prefill chunks: which kernels run, over what.

`KeyValueBlocks` holds every layer's keys and values, `DevicePools` what the kernels need besides and keep from step to
step, `StepAttention` one step. What depends on the batch alone (the deal of the decodes' work, the tiles of the chunks)
is planned once a step, on the device, for each window that the model's layers have.
"""

import torch
from torch import Tensor

from engine.device import Device
from engine.inputs import Ragged, StepInputs
from engine.kernels.decode_plan import decode_plan
from engine.kernels.paged_decode import DecodeLimits, DecodeWorkspace, decode_workspace, paged_decode
from engine.kernels.paged_prefill import ROWS, paged_prefill
from engine.kernels.paged_prefill_sm90 import ROWS as ROWS_SM90
from engine.kernels.paged_prefill_sm90 import paged_prefill_sm90, prefill_pool_map
from engine.kernels.prefill_plan import max_prefill_tiles, prefill_plan
from engine.kernels.registry import HOPPER
from engine.kernels.rotary_kv_write import QKNorm, rotary_kv_write
from engine.models.config import ModelConfig

MAX_DECODE_TOKENS = 1
"""Rows of so many tokens, at most, are attended as decodes."""

SPLIT_TOKENS = 1024
"""Where the decodes' work is cut in deterministic mode: at its multiples, whoever else is in the batch."""


class DevicePools:
    """Every layer's blocks, `[num_blocks, 2, num_kv_heads, block_size, head_dim]`, and the decodes' workspaces.

    `deterministic`: the bits of a decode do not depend on its batch, for some balance among long ones.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        dtype: torch.dtype,
        *,
        num_blocks: int,
        block_size: int,
        deterministic: bool = False,
    ) -> None:
        shape = (num_blocks, 2, config.num_kv_heads, block_size, config.head_dim)
        self.device = device
        self.config = config
        self.dtype = dtype
        self.block_size = block_size
        self._split_tokens = SPLIT_TOKENS if deterministic else 0
        self._max_kv_tokens = num_blocks * block_size
        self.layers = [device.empty(shape, dtype) for _ in range(config.num_layers)]
        self.maps = [prefill_pool_map(device, layer) for layer in self.layers] if device.arch in HOPPER else None
        self._workspaces: dict[tuple[int, int], DecodeWorkspace] = {}

    def workspace(self, window: int, num_sequences: int) -> DecodeWorkspace:
        """Give the decodes' workspace for so many sequences: there is one for each power of two, made when needed."""
        most = max(8, 1 << (num_sequences - 1).bit_length())
        found = self._workspaces.get((window, most))
        if found is None:
            config = self.config
            limits = DecodeLimits(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                dtype=self.dtype,
                kv_dtype=self.dtype,
                max_sequences=most,
                max_q_len=MAX_DECODE_TOKENS,
                window=window,
                split_tokens=self._split_tokens,
                max_kv_tokens=self._max_kv_tokens,
            )
            found = self._workspaces[window, most] = decode_workspace(self.device, limits)
        return found


class StepAttention:
    """One step's `DeviceAttention`. Plans when it is made."""

    def __init__(self, pools: DevicePools, inputs: StepInputs) -> None:
        self._pools = pools
        self._inputs = inputs
        self._windows = [window or 0 for window in pools.config.windows]
        self._workspaces = self._plan_decodes(inputs.decodes) if inputs.decodes.num_sequences else {}
        self._tiles = self._plan_chunks(inputs.chunks) if inputs.chunks.num_sequences else None
        self._scale = pools.config.head_dim**-0.5

    def attend(self, layer: int, qkv: Tensor, rotations: Tensor, norm: QKNorm | None) -> Tensor:
        """See `models.device_decoder.DeviceAttention`."""
        pools, inputs, window = self._pools, self._inputs, self._windows[layer]
        device, pool, cut = pools.device, pools.layers[layer], inputs.num_decode_tokens
        rotary_kv_write(device, qkv, pool, rotations, inputs.positions, inputs.slots, paired=True, norm=norm)
        out = device.empty((qkv.shape[0], pools.config.num_heads, qkv.shape[2]), qkv.dtype)
        if self._workspaces:
            tables = inputs.decodes.block_tables
            paged_decode(device, self._workspaces[window], out[:cut], qkv[:cut], pool, tables, scale=self._scale)
        if self._tiles is not None:
            chunks, pool_map = inputs.chunks, None if pools.maps is None else pools.maps[layer]
            batch = self._tiles, chunks.query_starts, chunks.kv_lengths, chunks.block_tables
            if pool_map is None:
                paged_prefill(device, out[cut:], qkv[cut:], pool, *batch, scale=self._scale, window=window)
            else:
                paged_prefill_sm90(
                    device, out[cut:], qkv[cut:], pool, pool_map, *batch, scale=self._scale, window=window
                )
        return out

    def _plan_decodes(self, decodes: Ragged) -> dict[int, DecodeWorkspace]:
        workspaces = {window: self._pools.workspace(window, decodes.num_sequences) for window in set(self._windows)}
        for workspace in workspaces.values():
            decode_plan(self._pools.device, workspace.plan, decodes.query_starts, decodes.kv_lengths)
        return workspaces

    def _plan_chunks(self, chunks: Ragged) -> Tensor:
        config = self._pools.config
        group = config.num_heads // config.num_kv_heads
        num_tokens = self._inputs.ids.shape[0] - self._inputs.num_decode_tokens
        rows = ROWS if self._pools.maps is None else ROWS_SM90
        most = max_prefill_tiles(num_tokens, chunks.num_sequences, group, rows)
        tiles = self._pools.device.empty((most, 2), torch.int32)
        prefill_plan(self._pools.device, tiles, chunks.query_starts, chunks.kv_lengths, group=group, rows=rows)
        return tiles
