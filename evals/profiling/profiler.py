"""Loads a model and profiles one step of it: counts, then seconds, then joules.

Contract: the model is loaded as the torch runner does, with transformers' own attention and cache
instead of the server's paged ones. A process that goes on has its number of CPU threads back.

Not covered: the OpenVINO runner, adapters, speculative steps, the server around the model, several
processes; GPTQ and AWQ weights, whose layers are not linear ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from evals.profiling.config import ProfileConfig
from evals.profiling.energy import Patience, measure_energy
from evals.profiling.observation import count, flops_by_module
from evals.profiling.parts import find_parts
from evals.profiling.profile import Profile, Subject, rows_of
from evals.profiling.step import Step
from evals.profiling.timing import time_step
from greenllm.config import ConfigError
from greenllm.energy.meters.protocol import Meter
from greenllm.model.loader import LoadedModel, load_config, load_model, without_weights
from greenllm.model.options import LoadOptions, resolve

_WARM_UP = 3


def profile(config: ProfileConfig, meter: Meter, patience: Patience | None = None) -> Profile:
    """Load and profile.

    Raises:
        GreenllmError: the model cannot be loaded or taken apart, or its context is too short.
    """
    with _threads(config.threads):
        loaded = load_model(config.model, _options(config))
        if config.context > loaded.info.context_length:
            raise ConfigError(
                f"--prompt-tokens {config.prompt_tokens} is too long: the context of"
                f" {config.model} is {loaded.info.context_length}"
            )
        return _profile(loaded, config, meter, patience)


def _options(config: ProfileConfig) -> LoadOptions:
    return LoadOptions(quantization=config.quantize, dtype=config.dtype)


def _profile(
    loaded: LoadedModel, config: ProfileConfig, meter: Meter, patience: Patience | None
) -> Profile:
    parts = find_parts(loaded.model, loaded.shape.num_layers)
    twin = without_weights(load_config(resolve(config.model), _options(config)), _options(config))
    step = Step(loaded.model, config)
    counts = count(parts, step, flops_by_module(loaded.model, twin, config))

    def run() -> None:
        step.prepare()
        step.run()

    for _ in range(_WARM_UP):
        run()
    plain_step_s, seconds = time_step(step, parts, config.rounds)
    energy = measure_energy(meter, run, config.rounds, patience)
    rows = rows_of([(p.kind, p.layer) for p in parts], counts, seconds, energy.active_j)
    return Profile(_subject(loaded), config, rows, plain_step_s, energy)


def _subject(loaded: LoadedModel) -> Subject:
    info, threads = loaded.info, torch.get_num_threads()
    about = (info.name, info.parameters, info.quantization, info.dtype, info.device)
    return Subject(*about, threads=threads)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
