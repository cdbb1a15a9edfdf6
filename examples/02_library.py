"""Use the model in your own process: one prompt, a conversation, a stream, a batch.

You learn that every answer has a receipt, and that prompts of one call share a batch.
"""

from greenllm import LLM, SamplingParams

SHORT = SamplingParams(temperature=0, max_tokens=24)

with LLM("bundled") as llm:
    answer = llm.generate("Once upon a time", SHORT)
    print("generate:", answer.text)
    receipt = answer.receipt
    print(f"  {receipt.total_j:.4f} J, of which {receipt.active_j:.4f} J above idle")
    print(f"  {receipt.completion_tokens} tokens, {receipt.gco2e:.2g} g CO2e, {receipt.method}")

    answer = llm.chat([{"role": "user", "content": "Tell me a story about a brave fox."}], SHORT)
    print("chat:", answer.text)
    print(f"  {answer.receipt.total_j:.4f} J")

    print("stream: ", end="")
    with llm.stream("The sun was", SHORT) as stream:
        for piece in stream:
            print(piece, end="", flush=True)
        print(f"\n  {stream.generation.receipt.total_j:.4f} J")

    for answer in llm.generate(["A cat", "A dog", "A bird"], SHORT):
        print("batch:", answer.text)
        print(f"  {answer.receipt.total_j:.4f} J")
