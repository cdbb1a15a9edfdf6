"""What waits for a stream is told in pieces."""

from __future__ import annotations

import asyncio

from greenllm.core import Request, SamplingParams, Token
from greenllm.energy.receipt import Receipt
from serving.bridge import MOST_TOLD, Submission

RECEIPT = Receipt("r", "m", "completed", 0.0, "final", "measured:x", True)


def test_many_tokens_are_told_in_pieces_between_which_others_get_their_turn() -> None:
    """As many wait where a client has not read for a while."""

    async def run() -> None:
        submission = Submission(Request("r", ((1,),), SamplingParams(), "m"), streaming=True)
        submission.tokens.extend(Token("r", 0, i) for i in range(2 * MOST_TOLD + 1))
        submission.receipt = RECEIPT
        others: list[int] = []
        asyncio.get_running_loop().call_soon(others.append, 1)
        found = [batch async for batch in submission.batches(1.0)]
        assert [len(batch or ()) for batch in found] == [MOST_TOLD, MOST_TOLD, 1]
        assert [token.token_id for batch in found for token in batch or ()] == [
            *range(2 * MOST_TOLD + 1)
        ]
        assert others == [1]

    asyncio.run(run())
