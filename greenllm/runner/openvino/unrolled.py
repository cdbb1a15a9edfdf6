"""Builds a drafter's graphs: several greedy steps of the first layers and the head, one by one.

The host pays once for all of them. Steps are in order because each one's ids come from the last
one's logits; they write to and read from the same caches, whose blocks must be there for all steps.

Inputs: those of the decoder's graph for the first step, a ragged batch, with `rows` the last token
of each sequence; for the others `later_lens` [sequences], the tokens before the second step,
`later_begins` [sequences + 1], 0, 1, 2 and so on, and `later_cosine`, `later_sine`
[steps - 1, sequences, 1, 1, head_dim]. Output: ids [sequences, steps], int32, and where they are
wanted the probabilities of these tokens, of the same shape.

`build_checked` goes on from there: the layers after the drafter's read what those before them have
computed for the newest token and its draft, and say what the whole model would have chosen. There
is one step more, for the last draft token, which drafts nothing; further inputs are `check_begins`
[sequences + 1], where each sequence's rows begin, and `check_cosine`, `check_sine`
[sequences * steps, 1, 1, head_dim]. Outputs: logits [sequences * steps, vocabulary], and the ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import openvino as ov
from openvino import Output, Type, opset13

from greenllm.runner.openvino.attention import StepInputs
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.graph import ANY, Angles, Layers, Sizes, pick
from greenllm.runner.openvino.nodes import integers


def build_unrolled(
    constants: Constants,
    num_layers: int,
    num_tokens: int,
    sizes: Sizes = ANY,
    *,
    with_probabilities: bool = False,
) -> ov.Model:
    """`num_tokens` steps of `num_layers` layers."""
    layers = Layers(constants, sizes=sizes)
    steps = _unroll(layers, num_layers, num_tokens)
    steps.draft(layers)
    results = [opset13.result(opset13.concat(steps.tokens, axis=1))]
    if with_probabilities:
        results.append(opset13.result(opset13.concat(steps.probabilities(), axis=1)))
    return ov.Model(results, layers.parameters, "drafter")


def build_checked(
    constants: Constants, num_layers: int, num_tokens: int, sizes: Sizes = ANY
) -> ov.Model:
    """`num_tokens` steps of `num_layers` layers, and the other layers on what they drafted."""
    layers = Layers(constants, sizes=sizes)
    steps = _unroll(layers, num_layers, num_tokens + 1)
    begins = layers.input("check_begins", Type.i32, [sizes.bounds])
    step = replace(steps.last, past_lens=steps.first.past_lens, subsequence_begins=begins)
    count = sizes.sequences * (num_tokens + 1) if sizes.sequences >= 0 else -1
    angles = layers.angles("check_", count)
    x = _by_sequence(steps.states, layers.spec.hidden_size)
    for layer in range(num_layers, layers.spec.num_layers):
        x = layers.run(layer, x, angles, step)
    ids = opset13.concat(steps.tokens, axis=1)
    results = [opset13.result(layers.logits(x)), opset13.result(ids)]
    return ov.Model(results, layers.parameters, "checked drafter")


@dataclass(slots=True)
class _Steps:
    """Steps in the making: their inputs, hidden states [sequences, hidden], and their draft.

    The last step drafts only when it is asked to.
    """

    first: StepInputs
    last: StepInputs
    states: list[Output]
    logits: list[Output] = field(default_factory=list)
    tokens: list[Output] = field(default_factory=list)

    def draft(self, layers: Layers) -> Output:
        """What the newest state's largest logit is, [sequences, 1]."""
        self.logits.append(layers.logits(self.states[-1]))
        self.tokens.append(_best(self.logits[-1]))
        return self.tokens[-1]

    def probabilities(self) -> list[Output]:
        """How likely each draft token is, [sequences, 1]."""
        shares = [opset13.softmax(logits, -1) for logits in self.logits]
        return [opset13.reduce_max(share, integers(-1), True).output(0) for share in shares]


def _unroll(layers: Layers, num_layers: int, num_steps: int) -> _Steps:
    ids, rows = layers.ids(), layers.rows()
    angles, first = layers.angles(), layers.step_inputs()
    steps = _Steps(first, first, [pick(_run(layers, num_layers, ids, angles, first), rows)])
    if num_steps > 1:
        later = _LaterSteps(layers, first, num_steps - 1)
    for number in range(num_steps - 1):
        ids = opset13.reshape(steps.draft(layers), integers(-1), False).output(0)
        steps.last = later.inputs(number)
        steps.states.append(_run(layers, num_layers, ids, later.angles(number), steps.last))
    return steps


def _run(layers: Layers, num_layers: int, ids: Output, angles: Angles, step: StepInputs) -> Output:
    x = layers.embed(ids)
    for layer in range(num_layers):
        x = layers.run(layer, x, angles, step)
    return x


def _best(logits: Output) -> Output:
    """Ids of the largest logits, [rows, 1]."""
    one = opset13.constant(np.array(1, np.int64))
    return opset13.topk(logits, one, -1, "max", "none", "i32").output(1)


def _by_sequence(states: list[Output], hidden: int) -> Output:
    """The states of all steps of the first sequence, then those of the next: [rows, hidden]."""
    rows = [opset13.reshape(x, integers(-1, 1, hidden), False) for x in states]
    joined = opset13.concat(rows, axis=1)
    return opset13.reshape(joined, integers(-1, hidden), False).output(0)


class _LaterSteps:
    """Inputs of the steps after the first: one token of each sequence."""

    def __init__(self, layers: Layers, first: StepInputs, count: int) -> None:
        sizes = layers.sizes
        self._lens = layers.input("later_lens", Type.i32, [sizes.sequences])
        begins = layers.input("later_begins", Type.i32, [sizes.bounds])
        self._step = replace(first, subsequence_begins=begins)
        shape = [count, sizes.sequences, 1, 1, layers.spec.head_dim]
        self._angles = [
            opset13.split(
                layers.input(f"later_{name}", Type.f32, shape), opset13.constant(np.int64(0)), count
            )
            for name in Angles._fields
        ]

    def angles(self, number: int) -> Angles:
        """Of step 2 + `number`."""
        return Angles(
            *(
                opset13.squeeze(parts.output(number), integers(0)).output(0)
                for parts in self._angles
            )
        )

    def inputs(self, number: int) -> StepInputs:
        """Of step 2 + `number`."""
        more = opset13.constant(np.array(number, np.int32))
        longest = opset13.constant(np.array(number + 1, np.int32))
        return replace(
            self._step,
            past_lens=opset13.add(self._lens, more).output(0),
            max_context_len=opset13.add(self._step.max_context_len, longest).output(0),
        )
