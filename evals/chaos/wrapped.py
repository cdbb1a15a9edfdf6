"""`greenllm` with faults that can be switched on: `python -m evals.chaos.wrapped SOCKET serve ...`.

Contract: the program is the product's own; around it are a sensor, the wall clock, the step, the
runner and the text of an answer, each of which does as usual until it is told otherwise. Orders
come through a Unix socket to which this process connects: a line of JSON with the switches to turn,
answered with a line once they are turned. The sensor is a RAPL counter that this module makes up
from CPU time, so that the product follows it as it follows a real one: `--meter rapl`.

A request with the seed `FAILING_SEED` has a text that fails after a few tokens.

Not covered: faults of the machine (signals, disks, descriptors), which need no wrapper.
"""

from __future__ import annotations

import json
import random
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenllm.core import AnswerSink, Batch, Event, Sample, SamplingParams, Token
from greenllm.energy.meters import counters
from greenllm.energy.meters.counters import CounterFile
from greenllm.energy.meters.protocol import SensorError
from greenllm.engine.native import NativeEngine
from greenllm.tokenizer import Tokenizer

WORKS, RAISES, GARBAGE, DIES = "works", "raises", "garbage", "dies"
FAILING_SEED = 1_984_061_201
_TOKENS_BEFORE_FAILURE = 3
_IDLE_W, _BUSY_W = 10.0, 20.0
_RANGE_UJ = 262_143_328_850


@dataclass(slots=True)
class Switches:
    """What does not do as usual at the moment."""

    sensor: str = WORKS
    step: str = WORKS
    clock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Sensor(CounterFile):
    """A counter of made-up joules: idle watts, and more for this process's CPU time."""

    switches: Switches = field(default_factory=Switches)

    def read_uj(self) -> int:
        """The counter, unless it is told to fail.

        Raises:
            SensorError: it is told so.
        """
        if self.switches.sensor == RAISES:
            raise SensorError("the sensor is gone, as it was told")
        if self.switches.sensor == GARBAGE:
            return random.randrange(-_RANGE_UJ, 2 * _RANGE_UJ)
        joules = _IDLE_W * time.monotonic() + _BUSY_W * time.process_time()
        return int(1e6 * joules) % _RANGE_UJ


class FailingText:
    """A text that fails after a few tokens."""

    stopped = False

    def __init__(self, text: AnswerSink) -> None:
        self._text = text
        self._num_tokens = 0

    def push(self, token_id: int) -> tuple[Event, ...]:
        """Take a token.

        Raises:
            RuntimeError: it is one too many.
        """
        self._num_tokens += 1
        if self._num_tokens > _TOKENS_BEFORE_FAILURE:
            raise RuntimeError("the text fails, as it was told")
        return self._text.push(token_id)

    def flush(self) -> tuple[Event, ...]:
        """What was held back."""
        return self._text.flush()


def wrap(switches: Switches) -> None:
    """Put the wrappers around the product of this process."""
    counters.find_rapl = lambda sys=Path(): [
        Sensor(Path("made-up"), "cpu", _RANGE_UJ, "package-0", switches=switches)
    ]
    tell_s = time.time
    time.time = lambda: tell_s() + switches.clock_s
    _wrap_engine(switches)
    make_text = Tokenizer.stream

    def stream(self: Tokenizer, params: SamplingParams) -> Any:
        text = make_text(self, params)
        return FailingText(text) if params.seed == FAILING_SEED else text

    _replace(Tokenizer, "stream", stream)


def _wrap_engine(switches: Switches) -> None:
    begin, step = NativeEngine.__init__, NativeEngine.step

    def begin_with_switches(self: NativeEngine, runner: Any, *args: Any, **more: Any) -> None:
        runner.run = _failing(runner.run, switches)
        begin(self, runner, *args, **more)

    def dying_step(self: NativeEngine) -> list[Token]:
        if switches.step == DIES:
            raise SystemExit("the device is gone, as it was told")
        return step(self)

    _replace(NativeEngine, "__init__", begin_with_switches)
    _replace(NativeEngine, "step", dying_step)


def _failing(
    run: Callable[[Batch], list[Sample]], switches: Switches
) -> Callable[[Batch], list[Sample]]:
    def run_unless_told(batch: Batch) -> list[Sample]:
        if switches.step == RAISES:
            raise RuntimeError("the step fails, as it was told")
        return run(batch)

    return run_unless_told


def _replace(kind: type[Any], name: str, value: Any) -> None:
    """Give a class another method."""
    setattr(kind, name, value)


def obey(orders: socket.socket, switches: Switches) -> None:
    """Turn switches as told, until nobody tells any more."""
    with orders, orders.makefile("rw", encoding="utf-8") as stream:
        for line in stream:
            for name, value in json.loads(line).items():
                setattr(switches, name, value)
            stream.write("done\n")
            stream.flush()


def main() -> None:
    """Become `greenllm` with the arguments after the socket's path."""
    switches = Switches()
    orders = socket.socket(socket.AF_UNIX)
    orders.connect(sys.argv[1])
    threading.Thread(target=obey, args=(orders, switches), daemon=True).start()
    wrap(switches)
    sys.argv = ["greenllm", *sys.argv[2:]]
    runpy.run_module("greenllm", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
