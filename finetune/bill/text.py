"""A report for people: Markdown, of the same figures as the JSON.

Contract: what is null there is a dash here; modelled joules say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.tables import grid

_NONE = "-"


def markdown(found: Mapping[str, Any], plot: str | None = None) -> str:
    """The report as a page."""
    recipe, measures = found["recipe"], found["measures"]
    reason = f" ({found['reason']})" if found["reason"] else ""
    parts = [
        f"# {recipe['method']} on {recipe['model']}: {found['status']}{reason}",
        _measures(measures, found["training"]),
        "## Energy by phase",
        _phases(measures["energy"]),
        *_trials(found["trials"]),
        "## Quality",
        _quality(found["quality"]),
        _break_even(found["break_even"]),
        "## Against training every weight",
        _comparator(found),
        "## Data",
        _data(found["data"], found["training"]),
        "## How to run it again",
        f"```sh\n{found['identity']['command']}\n```",
    ]
    if plot is not None:
        parts.insert(2, f"![Loss and joules]({plot})")
    return "\n\n".join(parts) + "\n"


def joules(value: float | None) -> str:
    """Joules in a unit that fits."""
    if value is None:
        return _NONE
    for size, unit in ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e3:.3g} mJ"


def _measures(found: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    energy, carbon, model = found["energy"], found["carbon"], found["model"]
    how = "measured" if energy["measured"] else "modelled, not measured"
    rows = [
        ("running time", f"{found['running_time_s']:.1f} s"),
        ("model", f"{model['parameters']:,} parameters, {model['trained']:,} of them trained"
                  if model["trained"] >= model["parameters"] else
                  f"{model['parameters']:,} parameters and {model['trained']:,} trained ones"),
        ("FLOPs", f"{found['flops']['value']:.3g} ({found['flops']['method']})"),
        ("mean power", f"{_number(found['power_w'])} W"),
        ("energy", f"{joules(energy['total_j'])} ({energy['method']}, {how},"
                   f" ± {_percent(energy['uncertainty'])})"),
        ("per training token", joules(energy["joules_per_training_token"])),
        ("carbon", f"{_number(carbon['total_g'])} g CO2e at {carbon['intensity_g_per_kwh']:g} g/kWh"
                   f" ({carbon['intensity_zone']}, {carbon['intensity_source']}), PUE"
                   f" {carbon['pue']:g}"),
        ("SCI", f"{_number(carbon['g_per_1k_training_tokens'])} g per 1,000 training tokens"),
        ("trained", f"{training['steps']:,} steps, {training['tokens']:,} tokens"),
    ]  # fmt: skip
    return grid(("measure", "value"), rows)


def _phases(energy: Mapping[str, Any]) -> str:
    rows = []
    for phase, found in energy["by_phase"].items():
        if found is None:
            rows.append((phase, _NONE, _NONE, _NONE, _NONE))
            continue
        parts = [joules(found[name]) for name in ("active_j", "idle_j", "total_j")]
        rows.append((phase, f"{found['duration_s']:.1f}", *parts))
    return grid(("phase", "seconds", "active", "idle share", "together"), rows)


def _trials(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    if not trials:
        return []
    rows = [
        (
            ", ".join(f"{name} {value}" for name, value in trial["settings"].items()),
            str(trial["steps"]),
            "failed" if trial["validation_loss"] is None else f"{trial['validation_loss']:.4f}",
            joules(trial["joules"]),
        )
        for trial in trials
    ]
    return ["## Trials", grid(("settings", "steps", "validation loss", "joules"), rows)]


def _quality(found: Mapping[str, Any]) -> str:
    rows = [
        ("validation loss, nats per token", *_both(found["validation_loss"]),
         _interval(found["validation_loss_change"], sign=True)),
        ("exact matches", *_both(found["exact_match"], share=True), ""),
        *([("better answer is likelier", *_both(found["preferred"], share=True), "")]
          if found["preferred"]["after"] else []),
        ("probe loss: what was known before", *_both(found["probe_loss"]),
         _interval(found["probe_loss_change"], sign=True)),
        *((f"exit after layer {layer} agrees", *_both(pair, share=True), "")
          for layer, pair in found["exits"].items()),
    ]  # fmt: skip
    return grid(("", "before", "after", "change"), rows) + "\n\nWith 95 % intervals."


def _break_even(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Break-even: unknown, no answers were asked for or their joules are unknown."
    if found["after_j"] is None:
        return f"Break-even: {found['reason']}."
    per = (
        f"A solved request cost {joules(found['before_j'])} before and {joules(found['after_j'])}"
        " after, in this run's scoring."
    )
    if found["requests"] is not None:
        return f"Break-even: after {found['requests']:,} solved requests. {per}"
    most = found["at_most"]
    bound = f", at most {most:,} solved requests, by the intervals of the shares" if most else ""
    return f"Break-even: {found['reason']}{bound}. {per}"


def _both(pair: Mapping[str, Any], *, share: bool = False) -> tuple[str, str]:
    return _interval(pair["before"], share=share), _interval(pair["after"], share=share)


def _interval(found: Mapping[str, float] | None, *, share: bool = False, sign: bool = False) -> str:
    if found is None:
        return _NONE
    if share:
        return f"{found['value']:.0%} ({found['low']:.0%} to {found['high']:.0%})"
    form = "+.3f" if sign else ".3f"
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def _comparator(found: Mapping[str, Any]) -> str:
    comparator, energy = found["comparator"], found["measures"]["energy"]
    if comparator["kind"] == "not measured":
        return "Not measured; `--compare full` or `--compare sample` does."
    if comparator["kind"] == "failed":
        return f"Not measured: {comparator['reason']}."
    mine = energy["training_j"]
    theirs = comparator["training_j_for_same_tokens"]
    ratio = f", {mine / theirs:.0%} of it" if mine and theirs else ""
    text = (
        f"Training every weight on the same tokens: {joules(theirs)} ({comparator['kind']});"
        f" this run's training: {joules(mine)}{ratio}."
    )
    if "validation_loss" in comparator:
        text += (
            f" Its validation loss: {_interval(comparator['validation_loss'])}, exact matches:"
            f" {_interval(comparator['exact_match'], share=True)}."
        )
    return text


def _data(data: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in data.items()
            if isinstance(value, int)]  # fmt: skip
    rows.append(("padding computed for nothing", f"{training['padding_tokens']:,}"))
    return grid(("", "count"), rows)


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"
