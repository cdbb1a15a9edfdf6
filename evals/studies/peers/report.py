"""What came out, as Markdown and a plot.

Contract: the page says on what machine, with which versions, when and within which limits it was
made. Arms that could not run are listed with their reason. What is unknown is a dash.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evals.studies import study
from evals.studies.peers.measure import PREFILL
from evals.tables import Column, Row, table, text, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"tokens_per_s": "tokens per second", "tokens_per_cpu_s": "tokens per CPU second"}


def page(result: study.Result) -> str:
    """Tables: generation by concurrency, prefill and memory, then what failed."""
    arms, levels = result["arms"], [str(level) for level in result["plan"]["concurrency"]]
    rows = _rows(result)
    parts = (
        *_about(result),
        "Generation: tokens/s, and tokens per CPU second of the server.",
        table(_generation(levels), rows),
        "Prompts, latency and memory.",
        table(_latency(levels), rows),
        "\n".join(_remarks(arms)),
    )
    return "\n\n".join(parts) + "\n"


def _rows(result: study.Result) -> list[Row]:
    """The arms that have run."""
    return [{"arm": name, **arm} for name, arm in result["arms"].items() if arm["loads"]]


def _at(load: str, name: str, factor: float = 1.0) -> Column:
    return value(f"loads.{load}.{name}", factor=factor)


def _generation(levels: list[str]) -> dict[str, Column]:
    return {
        "arm": value("arm"),
        "weights": value("weights"),
        **{f"tok/s @ {level}": _at(level, "tokens_per_s") for level in levels},
        **{f"tok/CPU-s @ {level}": _at(level, "tokens_per_cpu_s") for level in levels},
    }


def _latency(levels: list[str]) -> dict[str, Column]:
    first, last = levels[0], levels[-1]
    return {
        "arm": value("arm"),
        "prompt tok/s": _at(PREFILL, "prompt_tokens_per_s"),
        f"TTFT ms @ {first}": _at(first, "ttft_p50_s", 1e3),
        f"TTFT ms @ {last}": _at(last, "ttft_p50_s", 1e3),
        f"TPOT ms @ {last}": _at(last, "tpot_p50_s", 1e3),
        "peak MB": _peak_mb,
    }


def _peak_mb(row: Row) -> str:
    peaks = [load["peak_bytes"] for load in row["loads"].values()]
    return text(max((peak for peak in peaks if peak is not None), default=None), factor=1e-6)


def _about(result: study.Result) -> tuple[str, str]:
    plan = result["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['date']}, {result['machine']}, {plan['threads']} threads on cores "
        f"{','.join(map(str, plan['cores']))}; medians of {_rounds(result)} interleaved rounds; "
        f"{plan['prompt_tokens']} prompt and {plan['max_tokens']} generated tokens, closed loop; "
        f"prefill {plan['prefill_tokens']} tokens. {result['model']}.",
        f"Versions: {versions}. Command: `{result['command']}`.",
    )


def _rounds(result: study.Result) -> str:
    """How many rounds every arm has had; a run that is not over says so."""
    done, wanted = result["rounds"], result["rounds_wanted"]
    return str(done) if done == wanted else f"{done} (of {wanted}: not over)"


def _remarks(arms: Mapping[str, Any]) -> Iterator[str]:
    for name, arm in arms.items():
        yield f"- {name}: {arm['note']}."
        yield from (f"- {name} could not run: {_short(reason)}" for reason in arm["failures"])
        for load, about in arm["loads"].items():
            yield from (f"- {name} @ {load}, failed: {_short(r)}" for r in about["failures"])


def _short(reason: str) -> str:
    return " ".join(reason.split())[-300:]


def plot(figure: Figure, result: study.Result) -> None:
    """Bars of tokens/s and of tokens per CPU second, grouped by concurrency."""
    levels, rows = result["plan"]["concurrency"], _rows(result)
    width = 0.8 / max(1, len(rows))
    figure.set_size_inches(9, 6)
    for axes, (name, label) in zip(figure.subplots(2, 1), _TITLES.items(), strict=True):
        for i, row in enumerate(rows):
            heights = [row["loads"].get(str(level), {}).get(name) or 0.0 for level in levels]
            places = [at + (i - len(rows) / 2 + 0.5) * width for at in range(len(levels))]
            axes.bar(places, heights, width, label=row["arm"], color=f"C{i}")
        axes.set_xticks(range(len(levels)), [f"{level} in flight" for level in levels])
        study.labelled(axes, legend=name == "tokens_per_s", ylabel=label)
    figure.suptitle(f"{result['model']}, {result['plan']['threads']} threads")


STUDY = study.Study("peers", page, plot)
