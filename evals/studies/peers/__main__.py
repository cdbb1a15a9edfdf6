"""`python -m evals.studies.peers install | model | check | run`: greenllm beside other servers.

Contract: everything that is installed or made lies in `--envs`, `.peers` in the repository unless
said otherwise; results go to `evals/studies/results/peers.*`. Run it alone on the machine.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evals.entry import finish, pick, split_names
from evals.load.config import parse_levels
from evals.studies.peers.arms import ARMS, MODEL, Arm
from evals.studies.peers.install import INSTALLERS, require_tools, version_of
from evals.studies.peers.measure import Plan, medians, run_rounds, take_turn
from evals.studies.peers.report import draw, markdown
from greenllm.energy.hardware import read_cpu_info

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "evals" / "studies" / "results"
MODEL_TEXT = "Llama of SmolLM2-135M's shape, random weights"
Envs = Annotated[Path, typer.Option(help="Folder of environments and models.")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
console = Console(stderr=True, highlight=False, markup=False)


@app.command()
def model(
    envs: Envs = ROOT / ".peers",
    one_billion: Annotated[bool, typer.Option("--1b", help="The 1.1B shape instead.")] = False,
) -> None:
    """Make the random-weight model, in bfloat16 and W8A8."""
    from evals.studies.peers.checkpoint import config_1b, config_135m, write_checkpoint, write_w8a8

    if one_billion:
        write_checkpoint(envs / "models" / "m1b", config_1b())
        console.print(f"{envs / 'models' / 'm1b'}")
        return

    source, quantized = envs / "models" / MODEL, envs / "models" / f"{MODEL}-w8a8"
    if not (source / "tokenizer.json").exists():
        write_checkpoint(source, config_135m())
    if not (quantized / "tokenizer.json").exists():
        write_w8a8(source, quantized)
    console.print(f"{source}, {quantized}")


@app.command()
def install(
    peers: Annotated[list[str] | None, typer.Argument(help="Peers; else all.")] = None,
    envs: Envs = ROOT / ".peers",
) -> None:
    """Make the environments, and each peer's form of the model.

    llama.cpp: 0.5 GB, compiled from source in some five minutes on two cores.
    Needs a C++ compiler and cmake.

    vllm: 2.5 GB, the CPU build.

    openvino: 6.2 GB, with the torch that its exporter wants.

    transformers: nothing, it runs in greenllm's environment.

    The forms of the model take 1.1 GB more. What is there is not made again.
    """
    envs = envs.resolve()
    chosen = pick(peers or (), INSTALLERS, "no peer")
    if "llama.cpp" in chosen:
        require_tools(envs)
    model(envs)
    for name in chosen:
        console.print(f"{name} ...")
        INSTALLERS[name](envs)
        console.print(f"{name} {version_of(envs, name)}")


@app.command()
def check(envs: Envs = ROOT / ".peers") -> None:
    """Compare the greedy tokens of every form of the model with those of transformers.

    Forms with the model's own weights must give the same, quantized ones may differ. The exit code
    is 1 when one that must agree does not, one does not start, or no peer is installed.
    """
    from evals.studies.peers.agree import compare, reference, verdict

    envs = envs.resolve()
    text, ids = reference(envs / "models" / MODEL)
    console.print(f"transformers float32: {ids}", soft_wrap=True)
    findings = []
    for finding in compare(envs, text):
        console.print(str(finding), soft_wrap=True)
        findings.append(finding)
    if (problem := verdict(findings)) is not None:
        console.print(problem, soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def run(
    rounds: Annotated[int, typer.Option(help="Rounds of all arms.")] = 3,
    concurrency: Annotated[str, typer.Option(help="Requests in flight.")] = "1,8,32",
    arms: Annotated[str, typer.Option(help=f"Of {', '.join(ARMS)}; else all.")] = "",
    requests: Annotated[int, typer.Option(help="Least requests per load.")] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Length of prompts.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Length of answers.")] = 128,
    threads: Annotated[int, typer.Option(help="Threads of every server.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
    envs: Envs = ROOT / ".peers",
) -> None:
    """Measure all arms, interleaved; write JSON, Markdown and a plot."""
    plan = Plan(
        concurrency=tuple(parse_levels(concurrency)),
        requests=requests,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        prefill_tokens=512,
        prefill_requests=4,
        threads=threads,
        cores=tuple(sorted(os.sched_getaffinity(0))),
        timeout_s=600.0,
    )
    envs = envs.resolve()
    chosen = [ARMS[name] for name in pick(split_names(arms), ARMS, "no arm")]
    with tempfile.TemporaryDirectory() as folder:

        def turn(arm: Arm, number: int) -> dict[str, Any]:
            console.print(f"round {number + 1}/{rounds} {arm.name}")
            return take_turn(arm, plan, envs, Path(folder), seed=number)

        def keep(turns: Mapping[str, list[dict[str, Any]]]) -> None:
            write(about(plan, rounds, envs, chosen), turns, output)

        run_rounds(chosen, rounds, turn, keep)
    print((output / "peers.md").read_text(encoding="utf-8"))


def about(plan: Plan, rounds: int, envs: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "command": " ".join(["python", "-m", "evals.studies.peers", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} x {read_cpu_info().model_name}",
        "python": platform.python_version(),
        "model": MODEL_TEXT,
        "rounds": rounds,
        "plan": asdict(plan),
        "versions": {kind: version_of(envs, kind) for kind in dict.fromkeys(a.kind for a in arms)},
    }


def write(
    facts: Mapping[str, Any], turns: Mapping[str, list[dict[str, Any]]], folder: Path
) -> None:
    """Write all three files."""
    arms = {
        name: {"weights": ARMS[name].weights, "note": ARMS[name].note, **medians(taken)}
        for name, taken in turns.items()
    }
    done = min(len(taken) for taken in turns.values())
    figures = {**facts, "rounds": done, "rounds_wanted": facts["rounds"], "arms": arms}
    figures["turns"] = turns
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(figures, indent=2, default=str)
    (folder / "peers.json").write_text(text + "\n", encoding="utf-8")
    (folder / "peers.md").write_text(markdown(figures), encoding="utf-8")
    draw(figures, folder / "peers.svg")


if __name__ == "__main__":
    finish("evals.studies.peers", app)
