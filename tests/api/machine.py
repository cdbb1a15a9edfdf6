"""What stands in for hardware: a machine whose every step is known, and a model that runs on it.

A step of the model takes `STEP_S` seconds at `POWER_W` watts, `IDLE_W` of which the machine draws
anyway. Time passes in no other way, so that the joules of every request are known: a request alone
costs `STEP_J` for each of its tokens.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from greenllm.core import Batch, Request, TokenLogprob
from greenllm.core import Sequence as TokenSequence
from greenllm.energy.meters.protocol import Reading, SensorError
from greenllm.tokenizer import Tokenizer
from tests.fake_model import FakeRunner, digest
from tests.waiting import PATIENCE_S

STEP_S, POWER_W, IDLE_W = 0.01, 10.0, 2.0
STEP_J, STEP_ACTIVE_J = STEP_S * POWER_W, STEP_S * (POWER_W - IDLE_W)
LOAD_STEPS = 10
CONTEXT = 1024
WIDTH = 64
LORA_TARGETS = {f"layers.{i}.{name}": (WIDTH,) * 2 for i in (0, 1) for name in ("q_proj", "v_proj")}
FORCED = 100  # a bias so large decides alone


class Machine:
    """Clock and meter in one. It can be held between two steps, fail in one, or lose its sensor.

    `seen` are the requests of its last step; `waits` is whether a step is held.
    """

    method = "modelled:steps"
    measured = False
    period_s = 0.0
    uncertainty = 0.05
    lag_s = 0.0
    idle_w: Mapping[str, float] | None = {"cpu": IDLE_W}

    def __init__(self) -> None:
        self.is_blind = self.waits = False
        self.fault: BaseException | None = None
        self.seen: list[Request] = []
        self._now_s = 0.0
        self._allowed: float = float("inf")
        self._changed = threading.Condition()

    def clock(self) -> float:
        return self._now_s

    def read(self) -> Reading:
        if self.is_blind:
            self._now_s += 5 * STEP_S  # a server that waits for its sensor has to see time pass
            raise SensorError("the sensor is gone")
        return Reading(self._now_s, {"cpu": self._now_s * POWER_W})

    def rest(self, num_steps: int) -> None:
        """Let time pass in which nothing runs."""
        self._now_s += num_steps * STEP_S

    def step(self, batch: Batch) -> None:
        """Called before every step of the model."""
        self.seen = [chunk.seq.request for chunk in batch.chunks]
        with self._changed:
            self.waits = self._allowed <= 0
            assert self._changed.wait_for(lambda: self._allowed > 0, PATIENCE_S)
            self._allowed -= 1
            self.waits = False
        self._now_s += STEP_S
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault

    @contextmanager
    def held(self, after_steps: int = 0) -> Iterator[None]:
        """Within this no more steps are made than that, until `go_on`."""
        self._allow(after_steps)
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        self._allow(float("inf"))

    def _allow(self, num_steps: float) -> None:
        with self._changed:
            self._allowed = num_steps
            self._changed.notify_all()


class Talker(FakeRunner):
    """The fake model with the bundled one's tokenizer: it says words without sense.

    Greedy or not, what it says hangs on all that was said before, on the adapter and, unless it is
    greedy, on the seed. A bias of 100 forces a token; `min_tokens` keeps ends away.
    """

    def __init__(self, tokenizer: Tokenizer, on_run: Callable[[Batch], None], **facts: Any) -> None:
        (self._end,) = tokenizer.encode(str(tokenizer.describe()["eos_token"]))
        ends, size = frozenset({self._end}), tokenizer.vocab_size
        facts |= {"runner": "fake", "licence": "none", "context_length": CONTEXT}
        super().__init__(4096, 16, on_run, vocab_size=size, eos_token_ids=ends, **facts)
        self.lora_targets = LORA_TARGETS
        texts = {i: tokenizer.token_text(i) for i in range(tokenizer.vocab_size)}
        self._words = [i for i, text in texts.items() if text.strip().isalpha() and text.isascii()]

    def choose(self, seq: TokenSequence, context: Sequence[int]) -> int:
        asked = seq.sampling
        ends = {self._end, *asked.stop_token_ids}
        is_early = len(context) - seq.prompt_len < asked.min_tokens
        for token_id, bias in asked.logit_bias.items():
            if bias >= FORCED and not (is_early and token_id in ends):
                return token_id
        seed = 0 if asked.is_greedy else seq.seed
        said = repr((digest(seq), seed, *context)).encode()
        return self._words[zlib.crc32(said) % len(self._words)]

    def logprob(self, seq: TokenSequence, token_id: int) -> TokenLogprob:
        others = [word for word in self._words[:32] if word != token_id]
        best = [token_id, *others][: seq.sampling.logprobs]
        return TokenLogprob(token_id, -1.0, tuple((t, -1.0 - i) for i, t in enumerate(best)))


class SlowTokenizer:
    """Encodes a text that begins with `slowly` when it may go on, and others at once."""

    def __init__(self, real: Tokenizer) -> None:
        self._real = real
        self.reached, self.may_go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        if text.startswith("slowly"):
            self.reached.set()
            assert self.may_go_on.wait(PATIENCE_S)
        return self._real.encode(text, **options)
