"""Keep every receipt in a ledger, then sum them up as for a monthly report.

You learn to query a ledger from Python, by model, hour or adapter, and from the command line. A
server's ledger is the same file; it is read while the server runs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from greenllm import LLM, SamplingParams
from greenllm.energy.ledger import Ledger

with tempfile.TemporaryDirectory() as folder:
    with LLM("bundled", record=True, data_dir=folder) as llm:
        llm.generate(["A cat", "A dog", "A bird"], SamplingParams(max_tokens=16))

    ledger = Ledger(Path(folder, "ledger.sqlite"), read_only=True)
    for row in ledger.sums("model"):
        print(f"{row.group}: {row.requests} requests, {row.total_j:.4f} J, {row.gco2e:.2g} g CO2e")
    for row in ledger.sums("hour"):
        print(f"{row.group}: {row.joules_per_token:.5f} J per token")
    for session in ledger.sessions():
        t = session.totals
        print(
            f"meter {t.meter_j:.2f} J = requests {t.requests_j:.2f} + load {t.load_j:.2f}", end=""
        )
        print(f" + idle {t.idle_j:.2f} + unattributed {t.unattributed_j:.2f}")
    ledger.close()

    command = [sys.executable, "-m", "greenllm", "report", "--data-dir", folder]
    subprocess.run([*command, "--group-by", "hour"], check=True)
