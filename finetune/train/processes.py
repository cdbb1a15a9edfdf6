"""The processes of one run: alone, or several that `accelerate launch` started.

Contract: all of them agree on when to stop; only the main one meters, talks and writes. Its meter
counts the CPU time of the launcher's whole tree, so that on one machine nothing is counted twice
or left out. Not covered: joules of other machines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its siblings."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one meters, talks and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so for any of them; all of them have to ask."""
        return self.sums([int(flag)])[0] > 0

    def sums(self, values: list[int]) -> list[int]:
        """The sums over all of them, each of whom has to ask."""
        if self.count == 1:
            return values
        import torch

        on_gpu = torch.distributed.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        return [round(value) for value in tensor.tolist()]

    def wait(self) -> None:
        """Until all of them are here."""
        if self.count > 1:
            import torch

            torch.distributed.barrier()


def launched() -> Processes:
    """As the launcher's environment has it."""
    return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def join(processes: Processes, device: str) -> None:
    """Meet the others; the trainer then uses the same group."""
    if processes.count > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
