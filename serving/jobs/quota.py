"""How much each owner may keep here, so that none fills the disk for the others."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Quota:
    """For each owner: uploaded files, bytes of these and of the data of open jobs, open jobs."""

    num_files: int
    num_bytes: int
    num_jobs: int


UNLIMITED: Final = Quota(sys.maxsize, sys.maxsize, sys.maxsize)


class QuotaError(Exception):
    """An owner has as much as it may have; the message says of what, and what to do."""
