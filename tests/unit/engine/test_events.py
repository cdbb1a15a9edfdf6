"""What a sink makes of ids leaves the engine as it is: text, reasoning, calls, and the end."""

from __future__ import annotations

from greenllm.core import Event, Reasoning, Sample, ToolCall, sequences_of
from greenllm.engine.answers import append_all
from tests.fake_engine import make_request

CALL = ToolCall(0, "{}", "call-1", "time")


class Thinker:
    """Id 1 is thought, id 2 a call, every other id is text; some text comes at the end."""

    stopped = False

    def push(self, token_id: int) -> tuple[Event, ...]:
        events: dict[int, Event] = {1: Reasoning("hm"), 2: CALL}
        return (events.get(token_id, f"<{token_id}>"),)

    def flush(self) -> tuple[Event, ...]:
        return (".",)


def test_events_travel_with_their_tokens() -> None:
    request = make_request("a", (9,), max_tokens=3)
    (seq,) = sequences_of(request, eos_token_ids=frozenset(), max_len=99)
    seq.text = Thinker()
    tokens = [token for token_id in (1, 2, 5) for token in append_all(seq, Sample((token_id,)))]
    assert [token.events for token in tokens] == [(Reasoning("hm"),), (CALL,), ("<5>", ".")]
    assert [token.finish_reason for token in tokens] == [None, None, "length"]
