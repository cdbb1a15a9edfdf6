"""A known load: so many hardware threads, each kept busy by a process of its own.

Two kinds, because one busy thread does not draw what another does: sums in the interpreter, and a
matrix times a vector that is larger than a core's caches, as decoding does.

Contract: the processes end when the context is left, and by themselves soon after the time that
they were asked for, should this one be killed. Not covered: wide vector units at their peak, GPUs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

Work = Literal["sums", "matrix"]
WORKS: tuple[Work, ...] = ("sums", "matrix")
_MARGIN_S = 30.0
_CODE: dict[Work, str] = {
    "sums": """
import sys, time
end_s = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end_s:
    sum(range(10_000))
""",
    "matrix": """
import sys, time
import numpy
end_s = time.monotonic() + float(sys.argv[1])
matrix, vector = numpy.ones((2048, 2048), numpy.float32), numpy.ones(2048, numpy.float32)
while time.monotonic() < end_s:
    vector = matrix @ vector / 2048
""",
}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextlib.contextmanager
def busy(num_threads: int, work: Work, seconds: float) -> Iterator[list[int]]:
    """Keep so many hardware threads busy; gives the processes' numbers."""
    command = [sys.executable, "-I", "-c", _CODE[work], str(seconds + _MARGIN_S)]
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(num_threads):
            process = subprocess.Popen(
                command,
                env={**os.environ, **_ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            pids.append(process.pid)
        yield pids
