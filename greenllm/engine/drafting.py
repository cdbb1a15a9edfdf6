"""The drafters that a server has: made from options and model.

Contract: prompt lookup is always there, a draft model when `--draft-model` names one, early exit
wherever the runner can leave the model early. What options ask for and cannot be is an error that
names the option; what nobody asked for is left out.

Not covered: when drafting pays (see `speculation.speculator`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.config import ConfigError
from greenllm.core import Speculation, SpeculativeMethod
from greenllm.model.files import check_folder, read_json
from greenllm.model.info import LoadError
from greenllm.model.options import resolve
from greenllm.options import EngineConfig
from greenllm.runner.base import Runner
from greenllm.speculation.calibrated_exit import CalibratedExit, read_exit
from greenllm.speculation.drafter import Drafter
from greenllm.speculation.speculator import PromptLookup, Speculator

log = logging.getLogger(__name__)

EXIT_LAYERS = "greenllm_exit_layers"
_FEWEST_LAYERS = 3


@dataclass(frozen=True, slots=True)
class Drafting:
    """A speculator, and what its drafters are; None for those that are not there.

    `exit` is where early exit drafts, and where approximate answers leave.
    """

    speculator: Speculator
    exit: CalibratedExit | None = None
    draft_model: str | None = None
    draft_runner: Runner | None = None

    def __str__(self) -> str:
        """What requests get that do not say."""
        default = self.speculator.default
        if default.method == "off":
            return f"off (requests may ask for {', '.join(self.speculator.methods[1:])})"
        return f"{default.method}, {default.num_tokens} tokens at a time"


def check_draft_model(config: EngineConfig) -> None:
    """Refuse what cannot be a draft model, before anything is loaded.

    Raises:
        LoadError: with the reason.
    """
    name = config.draft_model
    if name is None:
        return
    try:
        check_folder(resolve(name), allow_pickle=config.allow_pickle)
    except LoadError as error:
        raise LoadError(f"--draft-model {name}: {error}") from error


def make_drafting(config: EngineConfig, runner: Runner) -> Drafting:
    """Everything the options and the model allow.

    Raises:
        ConfigError: an option does not fit the model.
        LoadError: the draft model cannot be loaded, or the model cannot be left early.
    """
    drafters: dict[SpeculativeMethod, Drafter] = {"prompt_lookup": PromptLookup()}
    exit_, draft_runner = None, None
    if (leaving := _early_exit(config, runner)) is not None:
        exit_, drafters["early_exit"] = leaving
    if config.draft_model is not None:
        from greenllm.runner.registry import load_draft_model  # which loads torch

        draft = load_draft_model(config, runner, resolve(config.draft_model))
        drafters["draft_model"], draft_runner = draft, draft.runner
    default = Speculation(config.speculative, config.speculative_tokens)
    speculator = Speculator(drafters, default, hopeless=_hopeless(config, drafters))
    for method, reason in speculator.hopeless.items():
        log.info("speculative auto leaves %s out: %s", method, reason)
    return Drafting(speculator, exit_, config.draft_model, draft_runner)


def _hopeless(
    config: EngineConfig, drafters: Mapping[SpeculativeMethod, Drafter]
) -> dict[SpeculativeMethod, str]:
    """What `auto` need not try."""
    asked_for = config.exit_layer is not None
    if "early_exit" not in drafters or asked_for or trained_exits(config.model):
        return {}
    return {"early_exit": f"config.json names no {EXIT_LAYERS}: the model was not trained for it"}


def _insists(config: EngineConfig) -> bool:
    """Whether a server without early exit is not what was asked for."""
    return config.speculative == "early_exit" or config.exit_layer is not None


def _exit_layer(config: EngineConfig, runner: Runner) -> int | None:
    num_layers = runner.shape.num_layers
    if num_layers < _FEWEST_LAYERS and not _insists(config):
        return None
    if num_layers < 2:
        raise ConfigError(f"--speculative early_exit: {config.model} has only one layer")
    if config.exit_layer is None:
        return default_exit(trained_exits(config.model), num_layers)
    if not 1 <= config.exit_layer < num_layers:
        raise ConfigError(
            f"--exit-layer must be in [1, {num_layers - 1}] for {config.model}"
            f" (got {config.exit_layer})"
        )
    return config.exit_layer


def _early_exit(config: EngineConfig, runner: Runner) -> tuple[CalibratedExit, Drafter] | None:
    """Where the model is left, and the drafter that does it; None when nobody insists."""
    layer = _exit_layer(config, runner)
    if layer is None:
        return None
    exit_ = read_exit(layer, _config_of(config.model))
    try:
        return exit_, runner.early_exit(layer)
    except LoadError as error:
        if _insists(config):
            raise LoadError(f"--speculative early_exit: {error}") from error
        log.info("no early exit: %s", error)
        return None


def default_exit(trained: Sequence[int], num_layers: int) -> int:
    """The trained exit nearest a third of the layers, without any a third of them."""
    inside = [layer for layer in trained if 1 <= layer < num_layers]
    if not inside:
        return max(1, num_layers // 3)
    return min(inside, key=lambda layer: (abs(3 * layer - num_layers), layer))


def trained_exits(model: str) -> tuple[int, ...]:
    """Numbers of layers after which a model was trained to answer, as its config.json says.

    Raises:
        LoadError: config.json says something else.
    """
    found: Any = _config_of(model).get(EXIT_LAYERS, [])
    if not isinstance(found, list) or not all(type(layer) is int for layer in found):
        raise LoadError(f"cannot load {model}: {EXIT_LAYERS} in config.json is no list of layers")
    return tuple(found)


def _config_of(model: str) -> Mapping[str, Any]:
    """What config.json says; nothing where there is none."""
    folder = _config_folder(resolve(model))
    return {} if folder is None else read_json(folder, "config.json")


def _config_folder(source: str) -> Path | None:
    """Where the loaded model's config.json lies; that of a hub id is in the hub's cache by now."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None
