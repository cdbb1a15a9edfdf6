"""Serve the bundled model, ask it with OpenAI's client, and see what the answer cost.

You learn which headers and which field of an answer have its joules.
"""

import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager

from openai import OpenAI


@contextmanager
def serve(folder):
    """A server with its ledger in a folder; gives its address."""
    command = [sys.executable, "-m", "greenllm", "serve", "--port", "0", "--data-dir", folder]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipe) as process:
        try:
            said = (re.search(r"listening on (\S+)", line) for line in process.stdout)
            yield next(found[1] for found in said if found)
        finally:
            process.terminate()


with tempfile.TemporaryDirectory() as folder, serve(folder) as url:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=5)
    raw = client.chat.completions.with_raw_response.create(
        model="bundled",
        messages=[{"role": "user", "content": "Tell me a story about a brave fox."}],
        max_tokens=40,
    )
    answer = raw.parse()
    print(answer.choices[0].message.content)
    for name, value in raw.headers.items():
        if name.startswith(("x-energy", "x-carbon")):
            print(f"{name}: {value}")
    print("usage.energy:", answer.usage.energy)
