"""EleutherAI's lm-eval against the server, unmodified, beside the project's own figures.

    python -m evals.studies.harness install     lm-eval in an environment of its own, .peers/lm-eval
    python -m evals.studies.harness run

Question: do both say the same of a model? Arms: lm-eval, and `greenllm eval`'s tasks, with the same
texts, minimal pairs and questions: log likelihoods by `local-completions` with the server's
tokenizer, answers by `local-chat-completions`. Measure: each task's figure, how far they are apart,
and lm-eval's own output.

Not covered: tasks of the hub, which need a network; few-shot prompts.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from evals.entry import BenchError
from evals.evaluation import evaluate
from evals.served import connect
from evals.studies import study
from evals.studies.load import serve
from evals.tables import table, value
from evals.tasks.base import Task
from evals.tasks.generated.stories import story
from evals.tasks.generated.tasks import held_out_examples
from evals.tasks.registry import find_tasks

PLACE = Path(".peers/lm-eval")
VERSION = "0.4.13"
_KINDS = ("upper", "sort", "reverse")
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

# As the harness reads them: JSON is YAML. A continuation begins without a space of its own.
_SHARED = {"dataset_path": "json", "test_split": "test", "doc_to_text": ""}
TASKS: Mapping[str, Mapping[str, Any]] = {
    "perplexity": {
        **_SHARED,
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "pairs": {
        **_SHARED,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "exact": {
        **_SHARED,
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 128, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}
METRICS = {"perplexity": "bits_per_byte,none", "pairs": "acc,none", "exact": "exact_match,none"}


def rows() -> dict[str, list[dict[str, str]]]:
    """What is asked: stories and one text longer than the context, swapped words, questions."""
    source = random.Random("harness")
    texts = [str(story(source).answer) for _ in range(40)]
    pairs = [
        {"sentence_good": text, "sentence_bad": _swapped(text, source)}
        for text in (text.split(".")[0] + "." for text in texts)
    ]
    questions = [
        {"prompt": example.prompt[-1].content, "answer": example.answer}
        for kind in _KINDS
        for example in held_out_examples(kind, 20, 7)
    ]
    texts.append(" ".join(texts))
    return {"perplexity": [{"text": text} for text in texts], "pairs": pairs, "exact": questions}


def _swapped(text: str, source: random.Random) -> str:
    """A sentence with two neighbours changed over."""
    words = text.split()
    place = source.randrange(len(words) - 1)
    words[place : place + 2] = reversed(words[place : place + 2])
    return " ".join(words)


def write_tasks(folder: Path) -> dict[str, Path]:
    """Data and task files; the data's paths."""
    places: dict[str, Path] = {}
    for name, items in rows().items():
        places[name] = folder / f"{name}.jsonl"
        places[name].write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
        data = {"data_files": {"test": str(places[name])}}
        task = {"task": name, "dataset_kwargs": data, **TASKS[name]}
        (folder / f"{name}.yaml").write_text(json.dumps(task, indent=1), encoding="utf-8")
    return places


def ask_harness(folder: Path, url: str, model: str, context: int) -> tuple[dict[str, float], str]:
    """lm-eval's figures, and what it printed.

    Raises:
        BenchError: it is not installed, or fails.
    """
    program = PLACE / "bin" / "lm-eval"
    if not program.exists():
        raise BenchError(
            f"{program} is not there: `python -m evals.studies.harness install` comes first"
        )
    common = f"model={model},num_concurrent=8,base_url={url}/v1"
    ways = {
        "local-completions": (
            "perplexity,pairs",
            f"{common}/completions,tokenizer_backend=remote,max_length={context}",
        ),
        "local-chat-completions": ("exact", f"{common}/chat/completions"),
    }
    figures: dict[str, float] = {}
    said = ""
    for way, (tasks, arguments) in ways.items():
        command = [str(program.resolve()), "run", "--model", way, "--tasks", tasks]
        command += ["--include_path", str(folder), "--model_args", arguments]
        command += ["--output_path", str(folder / way)]
        command += ["--apply_chat_template"] if "chat" in way else []
        found, text = _run(command, folder / way)
        figures |= {name: float(found[name][METRICS[name]]) for name in tasks.split(",")}
        said += text
    return figures, said


def _run(command: Sequence[str], output: Path) -> tuple[dict[str, Any], str]:
    environment = {**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=output.parent
    )
    written = sorted(output.glob("**/results_*.json"))
    if done.returncode != 0 or not written:
        raise BenchError(f"lm-eval failed: {done.stderr.strip()[-800:]}")
    results: dict[str, Any] = json.loads(written[-1].read_text())["results"]
    table = [line for line in done.stdout.splitlines() if line.startswith(("|", "local-"))]
    return results, "\n".join(table) + "\n"


async def ask_ourselves(url: str, tasks: Mapping[str, Task]) -> tuple[dict[str, float], int, str]:
    """The project's own figures, the context, and the model's name."""
    figures: dict[str, float] = {}
    async with connect(url, None, None, 600.0) as model:
        for name, task in tasks.items():
            result = await evaluate(model, task, 8, lambda done, count: None)
            figures[name] = result.figure().value
    if model.context is None:
        raise BenchError("the server does not say how long a context may be")
    return figures, model.context, model.model


@app.command()
def install() -> None:
    """Install lm-eval beside the project, in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
    pip = [str(PLACE / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"lm-eval[api]=={VERSION}"], check=True)


@app.command()
def run(model: study.Model = "bundled", name: study.Name = "harness") -> None:
    """Run both and write the comparison."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        places = write_tasks(folder)
        names = [f"{kind}:{path}" for kind, path in places.items()]
        found = find_tasks(names, {}, limit=None, shots=0, seed=0)
        tasks = dict(zip(places, found, strict=True))
        with serve(model) as server:
            own, context, asked = asyncio.run(ask_ourselves(server.url, tasks))
            theirs, said = ask_harness(folder, server.url, asked, context)
    rows = {
        kind: {"lm_eval": theirs[kind], "greenllm": own[kind], "examples": tasks[kind].count()}
        for kind in places
    }
    said = re.sub(r"http://\S+?/v1", "URL/v1", said)
    about = {"lm_eval_version": VERSION, "model": model}
    STUDY.report({**about, "tasks": rows, "lm_eval_said": said}, name)


def page(result: study.Result) -> str:
    """Both figures of each task, how far they are apart, and what lm-eval printed."""
    columns = {
        "task": value("task"),
        "examples": value("examples", ".0f"),
        "lm-eval": value("lm_eval", ".6f"),
        "greenllm": value("greenllm", ".6f"),
        "apart": value("apart", ".1g"),
    }
    rows = [
        {"task": task, "apart": abs(row["lm_eval"] - row["greenllm"]), **row}
        for task, row in result["tasks"].items()
    ]
    return f"{table(columns, rows)}\n\n{result['lm_eval_said']}"


STUDY = study.Study("harness", page)

if __name__ == "__main__":
    STUDY.run(app)
