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
from evals.profiling.observation import counter_flops, observe
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
    options = LoadOptions(quantization=config.quantize, dtype=config.dtype)
    with _threads(config.threads):
        loaded = load_model(config.model, options)
        if config.context > loaded.info.context_length:
            raise ConfigError(
                f"--prompt-tokens {config.prompt_tokens} is too long: the context of"
                f" {config.model} is {loaded.info.context_length}"
            )
        counted = _counter_flops(config, options)
        return _profile(loaded, config, meter, patience, counted)


def _profile(
    loaded: LoadedModel,
    config: ProfileConfig,
    meter: Meter,
    patience: Patience | None,
    counted: int | None,
) -> Profile:
    parts = find_parts(loaded.model, loaded.shape.num_layers)
    step = Step(loaded.model, config)
    counts = observe(parts, step)

    def run() -> None:
        step.prepare()
        step.run()

    for _ in range(_WARM_UP):
        run()
    times = time_step(step, parts, config.rounds)
    energy = measure_energy(meter, run, config.rounds, patience)
    watched = times.watched
    places = [(part.kind, part.layer) for part in parts]
    rows = rows_of(places, counts, watched.parts_s, watched.rest_s, energy.active_j)
    return Profile(_subject(loaded), config, rows, times.plain.step_s, energy, counted)


def _counter_flops(config: ProfileConfig, options: LoadOptions) -> int | None:
    plain = load_config(resolve(config.model), options)
    return counter_flops(without_weights(plain, options), config)


def _subject(loaded: LoadedModel) -> Subject:
    info = loaded.info
    return Subject(
        name=info.name,
        parameters=info.parameters,
        quantization=info.quantization,
        dtype=info.dtype,
        device=info.device,
        threads=torch.get_num_threads(),
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
