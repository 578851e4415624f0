"""The gate: fast streams take turns, and nobody can keep a place by doing nothing."""

from __future__ import annotations

import threading

from feddiff.federator import gate
from feddiff.federator.gate import Gate


def test_a_place_that_is_not_used_is_taken_back() -> None:
    """Two streams that hang (dead links, or worse) must not stop the others."""
    narrow = Gate(places=2)
    idle = [narrow.pass_through(lambda: True) for _ in range(2)]
    entered = threading.Event()

    def third() -> None:
        with narrow.pass_through(lambda: True):
            entered.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert entered.wait(10 * gate.PATIENCE_S)
    thread.join()
    for each in idle:
        each.leave()  # giving back what was taken must not make a place out of nothing
    assert [narrow.pass_through(lambda: False) for _ in range(2)]
    waiting = narrow.pass_through(lambda: False)  # no third place: it gives up when it is no longer alive
    waiting.leave()


def test_waiting_ends_when_the_other_end_is_gone() -> None:
    narrow = Gate(places=1)
    with narrow.pass_through(lambda: True) as inside:
        asked = []

        def alive() -> bool:
            inside.waited(0.0)  # the stream inside goes on working
            asked.append(True)
            return len(asked) < 3

        narrow.pass_through(alive)
        assert len(asked) == 3
