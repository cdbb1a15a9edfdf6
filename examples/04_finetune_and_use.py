"""Train an adapter on the sample data for a few steps, read its bill, and ask it.

You learn where `greenllm finetune` puts an adapter, so that servers and `LLM` find it by its name.
Three steps teach nothing; leave `--steps` out to train it properly, in some minutes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from greenllm import LLM, SamplingParams

STEPS = sys.argv[1] if len(sys.argv) > 1 else "3"

with tempfile.TemporaryDirectory() as folder:
    words = f"finetune --data example --name household --steps {STEPS} --max-length 128".split()
    command = [sys.executable, "-m", "greenllm", *words, "--data-dir", folder]
    subprocess.run(command, check=True)

    outcome = json.loads(Path(folder, "adapters", "household", "outcome.json").read_text())
    print(f"{outcome['tokens']} tokens of training: {outcome['bill']['total_j']:.1f} J")
    with LLM("bundled", data_dir=folder) as llm:
        question = [{"role": "user", "content": "How can I save energy in the kitchen?"}]
        answer = llm.chat(
            question, SamplingParams(temperature=0, max_tokens=24), adapter="household"
        )
        print(f"{answer.receipt.adapter}: {answer.receipt.total_j:.4f} J, {answer.text!r}")
