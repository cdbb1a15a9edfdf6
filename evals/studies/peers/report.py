"""What came out, as JSON, Markdown and a plot.

Contract: every table says on what machine, with which versions, when and within which limits it was
made. Arms that could not run are listed with their reason. What is unknown is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from evals.studies.peers.measure import PREFILL

mpl.use("Agg")
DASH = "—"


def cell(value: float | None, factor: float = 1.0) -> str:
    """A figure of a table: three significant digits, or all whole ones."""
    if value is None:
        return DASH
    scaled = value * factor
    return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"


def markdown(figures: Mapping[str, Any]) -> str:
    """Tables: generation by concurrency, prefill and memory, then what failed."""
    arms, levels = figures["arms"], [str(level) for level in figures["plan"]["concurrency"]]
    lines = [
        *_about(figures),
        "",
        "Generation: tokens/s, and tokens per CPU second of the server.",
        "",
    ]
    heads = [f"tok/s @ {level}" for level in levels] + [f"tok/CPU-s @ {level}" for level in levels]
    lines += _head(["arm", "weights", *heads])
    for name, arm in arms.items():
        if arm["loads"]:
            rates = [cell(_figure(arm, level, "tokens_per_s")) for level in levels]
            per_cpu = [cell(_figure(arm, level, "tokens_per_cpu_s")) for level in levels]
            lines.append(_line([name, arm["weights"], *rates, *per_cpu]))
    lines += ["", "Prompts, latency and memory.", ""]
    last = levels[-1]
    lines += _head(
        ["arm", "prompt tok/s", "TTFT ms @ 1", f"TTFT ms @ {last}", f"TPOT ms @ {last}", "peak MB"]
    )
    lines += [_second(name, arm, levels) for name, arm in arms.items() if arm["loads"]]
    return "\n".join([*lines, *_remarks(arms)]) + "\n"


def _about(figures: Mapping[str, Any]) -> list[str]:
    plan = figures["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return [
        f"{figures['date']}, {figures['machine']}, {plan['threads']} threads on cores "
        f"{','.join(map(str, plan['cores']))}; medians of {_rounds(figures)} interleaved rounds; "
        f"{plan['prompt_tokens']} prompt and {plan['max_tokens']} generated tokens, closed loop; "
        f"prefill {plan['prefill_tokens']} tokens. {figures['model']}.",
        "",
        f"Versions: {versions}. Command: `{figures['command']}`.",
    ]


def _rounds(figures: Mapping[str, Any]) -> str:
    """How many rounds every arm has had; a run that is not over says so."""
    done, wanted = figures["rounds"], figures["rounds_wanted"]
    return str(done) if done == wanted else f"{done} (of {wanted}: not over)"


def _second(name: str, arm: Mapping[str, Any], levels: Sequence[str]) -> str:
    first, last = levels[0], levels[-1]
    peaks = [_figure(arm, level, "peak_bytes") for level in (*levels, PREFILL)]
    return _line(
        [
            name,
            cell(_figure(arm, PREFILL, "prompt_tokens_per_s")),
            cell(_figure(arm, first, "ttft_p50_s"), 1e3),
            cell(_figure(arm, last, "ttft_p50_s"), 1e3),
            cell(_figure(arm, last, "tpot_p50_s"), 1e3),
            cell(max((peak for peak in peaks if peak is not None), default=None), 1e-6),
        ]
    )


def _figure(arm: Mapping[str, Any], load: str, name: str) -> float | None:
    value: float | None = arm["loads"].get(load, {}).get(name)
    return value


def _remarks(arms: Mapping[str, Any]) -> list[str]:
    lines = [""]
    for name, arm in arms.items():
        lines.append(f"- {name}: {arm['note']}.")
        lines += [f"- {name} could not run: {_short(reason)}" for reason in arm["failures"]]
        for load, about in arm["loads"].items():
            lines += [f"- {name} @ {load}, failed: {_short(r)}" for r in about["failures"]]
    return lines


def _short(reason: str) -> str:
    return " ".join(reason.split())[-300:]


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "|".join(["---", *["---:"] * (len(names) - 1)]) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Bars of tokens/s and of tokens per CPU second, grouped by concurrency."""
    from matplotlib.figure import Figure

    levels = [str(level) for level in figures["plan"]["concurrency"]]
    arms = {name: arm for name, arm in figures["arms"].items() if arm["loads"]}
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 1)
    titles = {"tokens_per_s": "tokens per second", "tokens_per_cpu_s": "tokens per CPU second"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        width = 0.8 / max(1, len(arms))
        for i, (name, arm) in enumerate(arms.items()):
            heights = [_figure(arm, level, key) or 0.0 for level in levels]
            places = [at + (i - len(arms) / 2 + 0.5) * width for at in range(len(levels))]
            axes.bar(places, heights, width, label=name, color=f"C{i}")
        axes.set_xticks(range(len(levels)), [f"{level} in flight" for level in levels])
        axes.set_ylabel(title)
        axes.grid(visible=True, axis="y", alpha=0.3)
    panels[0].legend(fontsize="small", ncols=3)
    panels[0].set_title(f"{figures['model']}, {figures['plan']['threads']} threads")
    figure.savefig(path)
