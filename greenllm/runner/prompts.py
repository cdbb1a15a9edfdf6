"""Prompt chunks of one step side by side, for devices where a launch costs more than padding.

Contract: chunks of like sizes, both their own and their contexts' rounded up to powers of two, make
a group; a group's queries and slots are padded to its largest with what is its own, and masked. So
no more than half of a side is padding. `order` brings the groups' rows back into packed order.

Not covered: devices where computing padding costs more than launching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Where a chunk is in the packed row (begin, end), its first position, its sequence's slots.
Prefill = tuple[int, int, int, Tensor]


@dataclass(slots=True)
class Group:
    """Chunks of like sizes: `rows` [chunks, tokens] in the packed row, `slots` [chunks, context].

    `starts` [chunks] are first positions; `kept` are the rows of the flattened answer that count.
    """

    rows: Tensor
    slots: Tensor
    starts: Tensor
    kept: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Which positions each token sees: `[chunks, 1, tokens, context]`."""
        if window not in self.masks:
            device = self.slots.device
            own = self.starts[:, None] + torch.arange(self.rows.shape[1], device=device)[None]
            positions = torch.arange(self.slots.shape[1], device=device)
            seen = positions <= own[..., None]
            if window is not None:
                seen &= positions > own[..., None] - window
            self.masks[window] = seen[:, None]
        return self.masks[window]

    def to(self, device: torch.device) -> Group:
        """The same group on another device."""
        rows, slots = self.rows.to(device), self.slots.to(device)
        return Group(rows, slots, self.starts.to(device), self.kept.to(device))


@dataclass(frozen=True, slots=True)
class Prompts:
    """All prompt chunks of a step; `order` puts the groups' rows, one after the other, in order."""

    groups: tuple[Group, ...]
    order: Tensor

    def to(self, device: torch.device) -> Prompts:
        """The same on another device."""
        return Prompts(tuple(group.to(device) for group in self.groups), self.order.to(device))


def side_by_side(prefills: Sequence[Prefill]) -> Prompts:
    """Group chunks, at least one."""
    sizes: dict[tuple[int, int], list[Prefill]] = {}
    for prefill in prefills:
        begin, end, _, slots = prefill
        sizes.setdefault((_rounded(end - begin), _rounded(len(slots))), []).append(prefill)
    groups = tuple(_group(members) for members in sizes.values())
    packed = [torch.arange(b, e) for members in sizes.values() for b, e, _, _ in members]
    return Prompts(groups, torch.argsort(torch.cat(packed)))


def _group(members: list[Prefill]) -> Group:
    rows = padded([torch.arange(begin, end) for begin, end, _, _ in members])
    slots = padded([slots for _, _, _, slots in members])
    starts = torch.tensor([start for _, _, start, _ in members])
    longest = rows.shape[1]
    kept = [torch.arange(end - begin) + i * longest for i, (begin, end, _, _) in enumerate(members)]
    return Group(rows, slots, starts, torch.cat(kept))


def padded(rows: list[Tensor]) -> Tensor:
    """Side by side; short ones repeat their own first.

    What is masked is still multiplied by zero, and what another sequence left may not be finite.
    """
    result = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return torch.where(result < 0, result[:, :1], result)


def _rounded(size: int) -> int:
    return 1 << (size - 1).bit_length()
