from __future__ import annotations

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encodec_rt.sound.fifo import SampleFifo


def take(fifo: SampleFifo, count: int) -> tuple[NDArray[np.int16], int]:
    target = np.full(count, -1, np.int16)
    missing = fifo.read_into(target)
    return target[: count - missing], missing


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_it_behaves_as_a_bounded_list_that_refuses_what_has_no_room(
    steps: list[tuple[bool, int]], capacity: int
) -> None:
    fifo, number = SampleFifo(capacity), 0
    model: list[int] = []
    for writes, count in steps:
        if writes:
            samples = np.arange(number, number + count).astype(np.int16)
            number += count
            room = capacity - len(model)
            model += samples[:room].tolist()
            assert fifo.write(samples) == max(0, count - room)
        else:
            got, missing = take(fifo, count)
            assert got.tolist() == model[:count]
            assert missing == count - len(got)
            model = model[count:]
        assert fifo.fill == len(model)


def test_skipping_lets_go_of_the_oldest() -> None:
    fifo = SampleFifo(8)
    fifo.write(np.arange(6, dtype=np.int16))
    assert fifo.skip(4) == 4
    assert take(fifo, 8)[0].tolist() == [4, 5]
    assert fifo.skip(1) == 0


def test_samples_pass_between_two_threads_in_order() -> None:
    fifo, sent = SampleFifo(100), np.arange(6_000).astype(np.int16)

    def write() -> None:
        position = 0
        while position < len(sent):
            piece = sent[position : position + 20]
            position += len(piece) - fifo.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    got: list[NDArray[np.int16]] = []
    while sum(len(piece) for piece in got) < len(sent):
        got.append(take(fifo, 13)[0])
    writer.join()
    assert np.array_equal(np.concatenate(got), sent)
