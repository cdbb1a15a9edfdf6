"""Where a report comes from: the command line without keys, and the machine by name.

Contract: the command is quoted for a shell and holds no key of a server, also not within the
options of `--serve`. GPUs are those that torch sees, if it is loaded already: nothing is imported
for them. Not covered: the machines of servers elsewhere; other secrets than keys.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from greenllm.energy.hardware import read_cpu_info

_KEYS = re.compile(r"""^(--api-key=).*|(--api-keys?(?:=|\s+))(?:'[^']*'|"[^"]*"|\S+)""")
_NAMES = ("--api-key", "--api-keys")
_MASK = "***"
_UNNAMED = "GPU"


def command_line(words: Sequence[str]) -> str:
    """The call of `greenllm` with these words, to be pasted into a shell; keys are masked."""
    masked = [
        _MASK if before in _NAMES else _KEYS.sub(rf"\1\2{_MASK}", word)
        for before, word in pairwise(["", *words])
    ]
    return shlex.join(["greenllm", *masked])


def machine_name() -> str:
    """Processors and GPUs, as '2 x AMD EPYC 9V74, 1 x NVIDIA H100'."""
    cpu = read_cpu_info()
    name = cpu.model_name or platform.machine() or cpu.vendor
    gpus = Counter(_gpus())
    cpus = f"{os.cpu_count() or cpu.num_vcpus} x {name}"
    return ", ".join([cpus, *(f"{count} x {gpu}" for gpu, count in gpus.items())])


def _gpus() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [_gpu_name(torch, i) for i in range(torch.cuda.device_count())]


def _gpu_name(torch: Any, number: int) -> str:
    """A GPU that cannot be opened now is still there, and no reason to lose a report."""
    try:
        return str(torch.cuda.get_device_name(number))
    except RuntimeError:
        return _UNNAMED
