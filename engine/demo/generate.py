"""Decode greedily, many prompts at a time: enough to measure the network with, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from engine.demo.chat import END, STOP
from engine.demo.network import Network
from engine.demo.vocabulary import id_of

_ROWS = 48


@torch.no_grad()
def greedy(network: Network, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int = 96) -> list[list[int]]:
    """The ids that follow each prompt, without the token that ended them. Prompts of like length run together."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    order = sorted(range(len(prompts)), key=lambda place: len(encoded[place]))
    answers: list[list[int]] = [[] for _ in prompts]
    stops = {id_of(tokenizer, END), id_of(tokenizer, STOP)}
    for start in range(0, len(order), _ROWS):
        places = order[start : start + _ROWS]
        rows = _decode(network, [encoded[place] for place in places], stops, max_new_tokens)
        for place, row in zip(places, rows, strict=True):
            answers[place] = row
    return answers


def _decode(network: Network, prompts: list[list[int]], stops: set[int], max_new_tokens: int) -> list[list[int]]:
    device = network.model.embed_tokens.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    stores = network.stores(len(prompts), longest + max_new_tokens)
    positions = torch.arange(longest, device=device).expand(len(prompts), -1)
    hidden = network.step(ids, positions, stores)[torch.arange(len(prompts)), lengths - 1]
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for _ in range(max_new_tokens):
        following = network.head(hidden).argmax(dim=-1)
        for row, token in enumerate(following.tolist()):
            ended[row] = ended[row] or token in stops
            if not ended[row]:
                answers[row].append(token)
        if all(ended):
            break
        hidden = network.step(following.unsqueeze(1), lengths.unsqueeze(1), stores)[:, 0]
        lengths = lengths + 1
    return answers
