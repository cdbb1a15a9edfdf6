"""The draft model's card, rendered from its training.json.

Contract: a pure function of the record. Not covered: the speed it brings, which depends on the
server and the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from evals.studies.bundled.card import perplexity_rows, slots

HEAD: Final = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# greenllm bundled draft model

A draft for speculative decoding with greenllm's bundled model: {parameters:,} parameters, Llama
architecture, float32, {weight_mb:.1f} MB, the same tokenizer. On its own it is of little use.

- **Architecture**: 2 layers, hidden size 128, 2 heads of 64, 1 key-value head, MLP 384, rotary
  positions up to 1024, tied embeddings.
- **Data**: distilled from the bundled model's distributions on the same kinds of text, generated
  conversations and public-domain books; see that model's card.
- **Licence**: Apache-2.0, weights and recipe.

## Recipe and cost

```
python -m evals.studies.bundled.distill --teacher bundled --text text --tokens {token_budget} \\
    --threads {threads} --output draft
python -m evals.studies.bundled.report --model bundled --draft draft --text text --unseen unseen
```

Run on {date}: {steps:,} steps, {tokens:,} tokens, {wall_s:,.0f} s of wall time without pauses,
{cpu_s:,.0f} s of processor time on {threads} cores, final (smoothed) loss {loss:.4f}.

Energy of that run: **{energy_modelled_j:,.0f} J** ({energy_method}).
The bundled model's own training, trial runs and scoring are not included.

![Training curve](curve.svg)

The points of the curve are in `curve.csv`.

## Agreement with the model

The share of held-out tokens at which the draft's likeliest token is the model's, given the
reference up to there; see the model's card for the kinds of text.

| text | share |
|---|---:|
"""
PERPLEXITY: Final = """
## Perplexity

| text | tokens | perplexity | bits per byte |
|---|---:|---:|---:|
"""


def agreement_rows(record: Mapping[str, object]) -> list[str]:
    """One row per kind of text."""
    shares = cast("Mapping[str, float]", record["agreement"])
    return [f"| {name} | {share:.1%} |" for name, share in shares.items()]


def render_draft_card(record: Mapping[str, object]) -> str:
    """The whole card."""
    return "".join(
        [
            HEAD.format_map(slots(record)),
            "\n".join(agreement_rows(record)) + "\n",
            PERPLEXITY + "\n".join(perplexity_rows(record)) + "\n",
        ]
    )
