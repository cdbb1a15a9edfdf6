"""How large a checkpoint is on disk: numbers in it, and bytes. Not covered: pickled weights."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import safe_open

from greenllm.model.files import local_folder
from greenllm.model.options import resolve


def sizes_of(model: str) -> tuple[int, int]:
    """Parameters and bytes of a model's safetensors files; tied weights count once."""
    files = sorted(Path(local_folder(resolve(model))).glob("*.safetensors"))
    parameters = 0
    for path in files:
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118
                parameters += math.prod(file.get_slice(key).get_shape())
    return parameters, sum(path.stat().st_size for path in files)
