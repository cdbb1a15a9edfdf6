"""`greenllm profile`: where one step of a model spends FLOPs, bytes, time and joules.

Contract: the page goes to standard output and, with `--output`, into a folder that is new or empty,
with everything as JSON and a picture.
"""

from __future__ import annotations

import json
import os

from rich.console import Console

from evals.profiling.config import ProfileConfig
from greenllm.energy.meters.choose import open_meter
from greenllm.model.quiet import hush_libraries
from greenllm.places import require_fresh


def profile(config: ProfileConfig) -> None:
    """Profile, print and write.

    Raises:
        GreenllmError: an option is wrong, or the model cannot be profiled.
    """
    if config.output is not None:
        require_fresh(config.output)
    meter, _ = open_meter(config)
    hush_libraries()
    # Threads that spin at barriers burn joules; read when torch is loaded, as for the server.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console(stderr=True, highlight=False, emoji=False)
    with console.status(f"profiling {config.model}"):
        from evals.profiling.profiler import profile as profile_step
        from evals.profiling.report import as_dict, draw, markdown

        found = profile_step(config, meter)
    page = markdown(found)
    print(page)
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(as_dict(found), indent=2) + "\n"
        (config.output / "profile.json").write_text(text, encoding="utf-8")
        (config.output / "profile.md").write_text(page, encoding="utf-8")
        draw(found, config.output / "profile.svg")
