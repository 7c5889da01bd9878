"""The gate: many pass together, and one acts alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hsmkm.token.gate import Gate

MANY = 8


def test_nobody_is_inside_while_one_acts_alone() -> None:
    gate, inside, seen = Gate(), [0], []
    entered, leave = threading.Event(), threading.Event()

    def pass_through() -> None:
        with gate.among_others():
            inside[0] += 1
            entered.set()
            leave.wait()
            inside[0] -= 1

    with ThreadPoolExecutor(2) as pool:
        passing = pool.submit(pass_through)
        entered.wait()
        acting = pool.submit(gate.alone, lambda: True, lambda: seen.append(inside[0]))
        leave.set()
        passing.result()
        acting.result()
    assert seen == [0]


def test_of_many_who_want_the_same_one_acts() -> None:
    """Many threads find a library worn at once: it is initialised anew once, and they wait for one round of calls."""
    gate, worn, acted = Gate(), [True], []
    together = threading.Barrier(MANY)

    def recycle() -> None:
        acted.append(threading.get_ident())
        worn[0] = False

    def call() -> None:
        together.wait()
        gate.alone(lambda: worn[0], recycle)

    with ThreadPoolExecutor(MANY) as pool:
        for each in [pool.submit(call) for _ in range(MANY)]:
            each.result()
    assert len(acted) == 1


def test_one_whose_wish_was_met_meanwhile_waits_for_nobody_inside() -> None:
    gate, worn = Gate(), [True]
    acting, go_on, entered, leave = (threading.Event() for _ in range(4))

    def recycle() -> None:
        acting.set()
        go_on.wait()
        worn[0] = False

    def long_call() -> None:
        with gate.among_others():
            entered.set()
            leave.wait()

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(gate.alone, lambda: worn[0], recycle)
        acting.wait()
        inside = pool.submit(long_call)
        go_on.set()
        first.result()
        entered.wait()
        gate.alone(lambda: worn[0], recycle)
        leave.set()
        inside.result()
    assert not worn[0]


def test_after_a_failure_the_gate_is_open() -> None:
    gate = Gate()

    def fail() -> None:
        raise OSError

    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(gate.alone, lambda: True, fail).exception()
    assert isinstance(failed, OSError)
    with gate.among_others():
        pass
