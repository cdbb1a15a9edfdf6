"""Does int8 save joules? Compare two ways to load one model on the same questions.

You learn to measure in turns, so that a busy minute of the machine meets both settings, and to
compare medians. Only one model works at a time, so neither pays for the other.
"""

from statistics import median

from greenllm import LLM, SamplingParams

ROUNDS = 5
PROMPTS = ["Once upon a time", "The sun was", "A cat and a dog", "In the garden"]
SAMPLING = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)


def joules_per_token(llm: LLM) -> float:
    """Of one batch."""
    receipts = [answer.receipt for answer in llm.generate(PROMPTS, SAMPLING)]
    return sum(r.total_j for r in receipts) / sum(r.completion_tokens for r in receipts)


with LLM("bundled", quantize="none") as plain, LLM("bundled", quantize="int8") as int8:
    found: dict[str, list[float]] = {"none": [], "int8": []}
    for _ in range(ROUNDS):
        found["none"].append(joules_per_token(plain))
        found["int8"].append(joules_per_token(int8))

for name, values in found.items():
    low, high = min(values), max(values)
    print(f"{name}: {median(values):.5f} J per token ({low:.5f} to {high:.5f})")
print(f"int8 / none: {median(found['int8']) / median(found['none']):.2f}")
