"""`python -m evals.studies.peers install | model | check | run`: greenllm beside other servers.

Contract: everything that is installed or made lies in `--envs`, `.peers` in the repository unless
said otherwise; results go to `evals/studies/results/peers.*`. Run it alone on the machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from evals.load.config import parse_levels
from evals.studies import study
from evals.studies.peers.arms import ARMS, MODEL, Arm
from evals.studies.peers.install import INSTALLERS, require_tools, version_of
from evals.studies.peers.measure import Plan, medians, take_turn
from evals.studies.peers.report import STUDY

ROOT = Path(__file__).resolve().parents[3]
MODEL_TEXT = "Llama of SmolLM2-135M's shape, random weights"
Turns = Mapping[str, Sequence[Mapping[str, Any]]]
Envs = Annotated[Path, typer.Option(help="Folder of environments and models.")]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.command()
def model(
    envs: Envs = ROOT / ".peers",
    one_billion: Annotated[bool, typer.Option("--1b", help="The 1.1B shape instead.")] = False,
) -> None:
    """Make the random-weight model, in bfloat16 and W8A8."""
    from evals.studies.peers.checkpoint import config_1b, config_135m, write_checkpoint, write_w8a8

    if one_billion:
        write_checkpoint(envs / "models" / "m1b", config_1b())
        study.console.print(f"{envs / 'models' / 'm1b'}")
        return

    source, quantized = envs / "models" / MODEL, envs / "models" / f"{MODEL}-w8a8"
    if not (source / "tokenizer.json").exists():
        write_checkpoint(source, config_135m())
    if not (quantized / "tokenizer.json").exists():
        write_w8a8(source, quantized)
    study.console.print(f"{source}, {quantized}")


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
    chosen = study.pick(peers or (), INSTALLERS, "no peer")
    if "llama.cpp" in chosen:
        require_tools(envs)
    model(envs)
    for name in chosen:
        study.console.print(f"{name} ...")
        INSTALLERS[name](envs)
        study.console.print(f"{name} {version_of(envs, name)}")


@app.command()
def check(envs: Envs = ROOT / ".peers") -> None:
    """Compare the greedy tokens of every form of the model with those of transformers.

    Forms with the model's own weights must give the same, quantized ones may differ. The exit code
    is 1 when one that must agree does not, one does not start, or no peer is installed.
    """
    from evals.studies.peers.agree import compare, reference, verdict

    envs = envs.resolve()
    text, ids = reference(envs / "models" / MODEL)
    study.console.print(f"transformers float32: {ids}", soft_wrap=True)
    findings = []
    for finding in compare(envs, text):
        study.console.print(str(finding), soft_wrap=True)
        findings.append(finding)
    if (problem := verdict(findings)) is not None:
        study.console.print(problem, soft_wrap=True)
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
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = study.RESULTS,
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
    chosen = study.pick(study.split_names(arms), ARMS, "no arm")
    known = about(plan, rounds, envs, [ARMS[name] for name in chosen])
    with tempfile.TemporaryDirectory() as folder:

        def turn(name: str, number: int) -> dict[str, Any]:
            study.console.print(name)
            taken = take_turn(ARMS[name], plan, envs, Path(folder), seed=number)
            return {"round": number, **taken}

        def keep(turns: Turns) -> None:
            STUDY.save({**known, **figures(turns)}, folder=output)

        study.interleave(turn, rounds, chosen, after=keep)
    print((output / "peers.md").read_text(encoding="utf-8"))


def about(plan: Plan, rounds: int, envs: Path, arms: Sequence[Arm]) -> dict[str, Any]:
    """What the figures rest on."""
    return {
        "model": MODEL_TEXT,
        "rounds_wanted": rounds,
        "plan": asdict(plan),
        "versions": {kind: version_of(envs, kind) for kind in dict.fromkeys(a.kind for a in arms)},
    }


def figures(turns: Turns) -> dict[str, Any]:
    """Medians of every arm, and what they are made of."""
    arms = {
        name: {"weights": ARMS[name].weights, "note": ARMS[name].note, **medians(taken)}
        for name, taken in turns.items()
    }
    return {"rounds": min(map(len, turns.values())), "arms": arms, "turns": turns}


if __name__ == "__main__":
    STUDY.run(app)
