"""The OpenVINO that is installed, and what it computes on this CPU. No torch."""

from __future__ import annotations

import re

_TESTED_FROM, _TESTED_BELOW = (2026, 4), (2026, 5)
TESTED = ">={}.{},<{}.{}".format(*_TESTED_FROM, *_TESTED_BELOW)


def is_tested(version: str) -> bool:
    """Whether this package was tested with that version of OpenVINO."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return _TESTED_FROM <= numbers < _TESTED_BELOW


def computes_bfloat16() -> bool:
    """Whether the CPU plugin computes in bfloat16 here."""
    import openvino as ov  # only here: what is above is also asked where it is not installed

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
