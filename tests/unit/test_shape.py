"""FLOPs and bytes of a chunk, and that cutting a prompt into chunks changes neither."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenllm.shape import ModelShape

SHAPE = ModelShape(
    body_parameters=1000,
    head_parameters=300,
    num_layers=2,
    attention_width=16,
    kv_bytes_per_token=64,
)


def test_one_token_costs_two_flops_a_parameter_and_its_attention() -> None:
    assert SHAPE.flops(0, 1, 0) == 2 * 1000 + 4 * 2 * 16 * 1
    assert SHAPE.flops(9, 1, 1) == 2 * 1000 + 2 * 300 + 4 * 2 * 16 * 10


def test_a_prompt_attends_to_a_triangle() -> None:
    assert SHAPE.flops(0, 4, 1) == 4 * 2000 + 600 + 4 * 2 * 16 * (1 + 2 + 3 + 4)


def test_kv_is_read_up_to_the_end_and_written_once_a_token() -> None:
    assert SHAPE.kv_bytes(0, 1) == 64 * 2
    assert SHAPE.kv_bytes(10, 3) == 64 * (13 + 3)


def test_no_tokens_need_no_flops() -> None:
    assert SHAPE.flops(7, 0, 0) == 0


@given(st.integers(0, 500), st.lists(st.integers(1, 64), min_size=1, max_size=8))
def test_chunks_of_a_prompt_add_up_to_the_prompt(start: int, sizes: list[int]) -> None:
    total, at = 0.0, start
    for size in sizes:
        total += SHAPE.flops(at, size, 0)
        at += size
    assert total == pytest.approx(SHAPE.flops(start, sum(sizes), 0))


@given(st.integers(0, 500), st.integers(1, 64))
def test_longer_context_never_costs_less(start: int, num_tokens: int) -> None:
    assert SHAPE.flops(start + 1, num_tokens, 1) > SHAPE.flops(start, num_tokens, 1)
    assert SHAPE.kv_bytes(start + 1, num_tokens) > SHAPE.kv_bytes(start, num_tokens)
