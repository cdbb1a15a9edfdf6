"""The folder a run leaves behind: adapter or model, report, plot, card; and what may be there.

Contract: a folder with somebody else's files is refused; a finished run is not overwritten; a run
that fails before it wrote anything leaves no folder that it made.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.files import (
    CHECKPOINTS,
    JOURNAL,
    OUTCOME,
    PAGE,
    PART,
    PLOT,
    REPORT,
    SWEEP,
    WAIT,
    SavingError,
    read_json,
    remove_incomplete,
    write_json,
)
from finetune.recipe import Recipe
from finetune.train.exits import exits_of
from greenllm.config import ConfigError

_OWN = frozenset(
    {REPORT, PAGE, PLOT, JOURNAL, OUTCOME, CHECKPOINTS, SWEEP, WAIT, "trial", "compare",
     "README.md", "adapter_config.json", "adapter_model.safetensors", "model.safetensors",
     "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
     "chat_template.jinja"}
)  # fmt: skip


@contextmanager
def opened_folder(recipe: Recipe) -> Iterator[None]:
    """The folder, made; what is half-written in it is removed.

    Raises:
        ConfigError: there is something in it already, or nothing to resume.
    """
    folder = recipe.folder
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        _open(recipe)
        yield
    except BaseException:
        for place in missing:
            with suppress(OSError):  # something is in it
                place.rmdir()
        raise


def _open(recipe: Recipe) -> None:
    folder = recipe.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{_where(recipe)}: {error.strerror or error}") from error
    is_complete = (read_json(folder / REPORT) or {}).get("status") == "completed"
    if not recipe.resume:
        if found:
            raise ConfigError(
                f"{_where(recipe)} holds {found[0]} already: {_ways(recipe, is_complete)}"
            )
        return
    if is_complete:
        raise ConfigError(f"--resume: the run in {folder} is complete; see its {REPORT}")
    if other := [name for name in found if name.removesuffix(PART) not in _OWN]:
        raise ConfigError(f"--resume: {folder} holds {other[0]}, which no run has written")
    remove_incomplete(folder / CHECKPOINTS)


def _where(recipe: Recipe) -> str:
    """The option that says where, as it was given."""
    if recipe.is_in_data_dir:
        return f"--name {recipe.name}: {recipe.folder}"
    return f"--output {recipe.folder}"


def _ways(recipe: Recipe, is_complete: bool) -> str:
    """What can be done about a folder that is in use."""
    goes_on = "" if is_complete else "--resume goes on with an unfinished run, "
    if not recipe.is_in_data_dir:
        return f"{goes_on}{'or ' if goes_on else ''}name another folder"
    remove = ["greenllm", "adapters", "remove", recipe.name or ""]
    remove += ["--data-dir", str(recipe.data_dir)] if recipe.data_dir else []
    return f"{goes_on}`{shlex.join(remove)}` deletes it, or choose another name"


def save_weights(recipe: Recipe, model: Any, tokenizer: Any) -> int:
    """Write what was trained; returns its size in bytes.

    Raises:
        SavingError: it cannot be written.
    """
    folder = recipe.folder
    try:
        if recipe.objective == "layerskip" and not recipe.is_adapter:
            model.config.greenllm_exit_layers = list(exits_of(recipe, model).layers)
        model.save_pretrained(folder, safe_serialization=True)
        if recipe.is_adapter:
            _name_base(folder / "adapter_config.json", recipe.model)
        else:
            tokenizer.save_pretrained(folder)
    except Exception as error:
        raise SavingError(f"cannot write {folder}: {error}; its checkpoints are whole") from error
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _name_base(path: Path, name: str) -> None:
    """The adapter names its base as people ask for it, not by a path of this machine."""
    found = read_json(path) or {}
    write_json(path, {**found, "base_model_name_or_path": name})
