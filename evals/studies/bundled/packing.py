"""Fixed-size training batches from conversations of different lengths.

Contract: a conversation is never cut and never sees another one in its row; what does not fit a
row is dropped. Not covered: conversations longer than a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from evals.studies.bundled.tokenizer import Encoded

IGNORED: Final = -1


@dataclass(frozen=True)
class Batch:
    """Rows of token ids; `owner` says which conversation of its row a token belongs to."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor
    positions: torch.Tensor
    tokens: int


def pack_rows(stream: Iterable[Encoded], rows: int, length: int) -> list[list[Encoded]]:
    """Fill rows first-fit, until a conversation fits none of them."""
    packed: list[list[Encoded]] = [[] for _ in range(rows)]
    room = [length + 1] * rows
    for item in stream:
        if len(item.ids) > length:
            continue
        index = next((i for i in range(rows) if room[i] >= len(item.ids)), None)
        if index is None:
            break
        packed[index].append(item)
        room[index] -= len(item.ids)
    return packed


def make_batch(packed: list[list[Encoded]], length: int, pad: int) -> Batch:
    """Tensors for one step; padding and the jump between conversations weigh nothing."""
    ids = torch.full((len(packed), length + 1), pad)
    weights = torch.zeros(len(packed), length + 1)
    owner = torch.full((len(packed), length + 1), IGNORED)
    positions = torch.zeros(len(packed), length + 1, dtype=torch.long)
    for row, items in enumerate(packed):
        start = 0
        for number, item in enumerate(items):
            stop = start + len(item.ids)
            ids[row, start:stop] = torch.tensor(item.ids)
            weights[row, start:stop] = torch.tensor((0.0, *item.weights[1:]))
            owner[row, start:stop] = number
            positions[row, start:stop] = torch.arange(stop - start)
            start = stop
    return Batch(
        ids=ids[:, :-1],
        targets=ids[:, 1:],
        weights=weights[:, 1:],
        owner=owner[:, :-1],
        positions=positions[:, :-1],
        tokens=int((owner >= 0).sum()),
    )
