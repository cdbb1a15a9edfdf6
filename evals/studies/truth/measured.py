"""Real step costs of every subset of some requests, and the account's shares of the same steps.

Contract: all subsets of all games in a new random order each round, so that what else the machine
does hits all alike; medians. A step is run once before it is timed, as its shape may be new to the
kernels. The account's model of steps learns from the median times of the same steps.

Not covered: joules (a second of a step is taken as so many joules), adapters, drafters.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from evals.engines import load_bench
from evals.entry import BenchError
from evals.studies import study
from evals.studies.truth.games import GAMES, Player, coalitions, game_figures, inside
from greenllm.core import Batch, Chunk, Request, SamplingParams
from greenllm.core import Sequence as TokenSequence
from greenllm.energy.account.curve import WIDTHS
from greenllm.energy.account.steps import StepModel
from greenllm.energy.account.tally import WindowTally
from greenllm.runner.base import Runner
from greenllm.shape import ModelShape

CLOCKS: Mapping[str, Callable[[], float]] = {
    "cpu": time.process_time,
    "wall": time.perf_counter,
}
_LEARNING_ROUNDS = 4
Step = tuple[str, int]
Games = Mapping[str, Sequence[Player]]


def lay(runner: Runner, players: Sequence[Player]) -> list[Chunk]:
    """What each player runs, in blocks of its own, its context computed.

    Raises:
        BenchError: they are too long for the model.
    """
    chunks: list[Chunk] = []
    free = 0
    for number, player in enumerate(players):
        end = player.start + player.num_tokens + player.num_drafts
        blocks = -(-end // runner.block_size)
        if end >= runner.info.context_length or free + blocks > runner.num_blocks:
            raise BenchError(f"a {player} does not fit the model's context")
        seq = _sequence(runner, number, player)
        seq.block_table = list(range(free, free + blocks))
        free += blocks
        if player.start:
            runner.run(Batch((Chunk(seq, 0, player.start, samples=False),)))
        chunk = Chunk(seq, player.start, player.num_tokens, samples=True)
        drafts = tuple(_tokens(runner, player.num_drafts))
        chunks.append(chunk.with_draft(drafts) if drafts else chunk)
    return chunks


def step_of(chunks: Sequence[Chunk], mask: int) -> Batch:
    """The step of a subset; the engine puts those that decode first."""
    chosen = [chunks[place] for place in inside(mask)]
    return Batch(tuple(sorted(chosen, key=lambda chunk: chunk.phase == "prefill")))


def _tokens(runner: Runner, count: int) -> list[int]:
    source = random.Random(count)
    return [source.randrange(runner.info.vocab_size) for _ in range(count)]


def _sequence(runner: Runner, number: int, player: Player) -> TokenSequence:
    """With a prompt that ends where its decoding begins."""
    token_ids = _tokens(runner, player.start + player.num_tokens)
    prompt = tuple(token_ids[: player.start or player.num_tokens])
    return TokenSequence(
        request=Request(str(number), (prompt,), SamplingParams(temperature=0), model=""),
        index=0,
        token_ids=token_ids,
        prompt_len=len(prompt),
        seed=number,
        eos_token_ids=frozenset(),
        max_len=runner.info.context_length,
    )


def measure_games(
    model: str,
    threads: int,
    rounds: int,
    unit: str,
    *,
    games: Games = GAMES,
    **flags: str,
) -> dict[str, Any]:
    """All games on a model as it would be served.

    Raises:
        BenchError: it cannot be measured so, or a game does not fit the model.
    """
    if unit not in CLOCKS or rounds < 2:
        raise BenchError("--unit takes cpu or wall, and --rounds 2 or more")
    runner = load_bench(model, threads, **flags).runner
    for count in {player.num_drafts for players in games.values() for player in players} - {0}:
        runner.prepare_check(count)
    laid = {name: lay(runner, players) for name, players in games.items()}
    steps = {
        (name, mask): step_of(chunks, mask)
        for name, chunks in laid.items()
        for mask in coalitions(len(chunks))
    }
    times = timed(runner, steps, rounds, CLOCKS[unit])
    account = AccountShares(runner.shape, steps, times)
    return {"games": [_game(name, games[name], times, account) for name in games]}


def timed(
    runner: Runner, steps: Mapping[Step, Batch], rounds: int, clock: Callable[[], float]
) -> dict[Step, list[float]]:
    """Seconds of each step, one for each round."""
    found: dict[Step, list[float]] = {step: [] for step in steps}
    order, source = list(steps), random.Random(1)
    for _ in study.each_round(rounds):
        source.shuffle(order)
        for step in order:
            runner.run(steps[step])
            began_s = clock()
            runner.run(steps[step])
            found[step].append(clock() - began_s)
    return found


class AccountShares:
    """How the account would share these steps, once its model has seen them a few times."""

    def __init__(
        self,
        shape: ModelShape,
        steps: Mapping[Step, Batch],
        times: Mapping[Step, list[float]],
    ) -> None:
        self._shape = shape
        self._steps = steps
        self._model = StepModel(shape)
        order, source = list(steps), random.Random(2)
        for _ in range(_LEARNING_ROUNDS):
            source.shuffle(order)
            for step in order:
                self._tally(step, statistics.median(times[step]), self._model)

    def of(self, step: Step) -> list[float]:
        """What it would predict for each request of a step."""
        found: dict[str, float] = {}
        for (owner, _), work in self._tally(step, 1.0, deepcopy(self._model)).works():
            found[owner] = found.get(owner, 0.0) + work.claim_j
        return [found[str(place)] for place in inside(step[1])]

    def _tally(self, step: Step, duration_s: float, model: StepModel) -> WindowTally:
        """A step as the account notes it; the model learns its time."""
        tally = WindowTally(self._shape, model, [1.0] * WIDTHS)
        tally.add_step(self._steps[step], duration_s)
        return tally


def _game(
    name: str,
    players: Sequence[Player],
    times: Mapping[Step, Sequence[float]],
    account: AccountShares,
) -> dict[str, Any]:
    """The figures of one game, and of its even and odd rounds by themselves."""
    found = {mask: times[name, mask] for mask in coalitions(len(players))}
    worth, even, odd = (
        {mask: statistics.median(taken[part]) for mask, taken in found.items()}
        for part in (slice(None), slice(0, None, 2), slice(1, None, 2))
    )
    figures = game_figures(players, worth, (even, odd), lambda mask: account.of((name, mask)))
    return {"step": name, **figures}
