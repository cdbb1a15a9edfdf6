"""Builds a drafter's graph: several greedy steps of the first layers and the head, one by one.

The host pays once for all of them. Steps are in order because each one's ids come from the last
one's logits; they write to and read from the same caches, whose blocks must be there for all steps.

Inputs: those of the decoder's graph for the first step, a ragged batch, with `rows` the last token
of each sequence; for the others `later_lens` [sequences], the tokens before the second step,
`later_begins` [sequences + 1], 0, 1, 2 and so on, and `later_cosine`, `later_sine`
[steps - 1, sequences, 1, 1, head_dim]. Output: ids [sequences, steps], int32.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openvino as ov
from openvino import Output, Type, opset13

from greenllm.runner.openvino.attention import StepInputs
from greenllm.runner.openvino.constants import Constants
from greenllm.runner.openvino.graph import Angles, GraphOptions, Layers, pick
from greenllm.runner.openvino.nodes import integers


def build_unrolled(constants: Constants, num_layers: int, num_steps: int) -> ov.Model:
    """`num_steps` steps of `num_layers` layers."""
    layers = Layers(constants, GraphOptions())
    ids, rows = layers.input("ids", Type.i32, [-1]), layers.input("rows", Type.i32, [-1])
    angles, step = layers.angles(), layers.step_inputs()
    x = pick(_run(layers, num_layers, ids, angles, step), rows)
    guesses = [_best(layers.logits(x))]
    if num_steps > 1:
        later = _LaterSteps(layers, step, num_steps - 1)
    for number in range(num_steps - 1):
        ids = opset13.reshape(guesses[-1], integers(-1), False).output(0)
        x = _run(layers, num_layers, ids, later.angles(number), later.inputs(number))
        guesses.append(_best(layers.logits(x)))
    result = opset13.result(opset13.concat(guesses, axis=1))
    return ov.Model([result], layers.parameters, "drafter")


def _run(layers: Layers, num_layers: int, ids: Output, angles: Angles, step: StepInputs) -> Output:
    x = layers.embed(ids)
    for layer in range(num_layers):
        x = layers.run(layer, x, angles, step)
    return x


def _best(logits: Output) -> Output:
    """Ids of the largest logits, [rows, 1]."""
    one = opset13.constant(np.array(1, np.int64))
    return opset13.topk(logits, one, -1, "max", "none", "i32").output(1)


class _LaterSteps:
    """Inputs of the steps after the first: one token of each sequence."""

    def __init__(self, layers: Layers, first: StepInputs, count: int) -> None:
        self._lens = layers.input("later_lens", Type.i32, [-1])
        begins = layers.input("later_begins", Type.i32, [-1])
        self._step = replace(first, subsequence_begins=begins)
        shape = [count, -1, 1, 1, layers.spec.head_dim]
        self._angles = [
            opset13.split(
                layers.input(f"later_{name}", Type.f32, shape), opset13.constant(np.int64(0)), count
            )
            for name in Angles._fields
        ]
        self._size = layers.spec.head_dim

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
