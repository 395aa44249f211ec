"""Requests that come at the same time are worked on together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from mlops_assets.foundation.serving import Groups


class Office:
    """Doubles numbers; holds the first group until the others have come."""

    def __init__(self, waits: bool = False) -> None:
        self.groups: list[list[int]] = []
        self.open = threading.Event()
        self.begun = threading.Event()
        if not waits:
            self.open.set()

    def work(self, asked: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(asked))
        self.begun.set()
        assert self.open.wait(20)
        if 13 in asked:
            raise RuntimeError("the office is closed")
        return [ValueError(f"{number} is negative") if number < 0 else 2 * number for number in asked]


def groups_of(office: Office, most: int = 64) -> Groups[int, int]:
    return Groups(asyncio.to_thread, office.work, most=most)


async def ask_all(office: Office, numbers: Sequence[int], most: int = 64) -> list[int | BaseException]:
    """Ask for the first number alone and for all others while it is worked on."""
    groups = groups_of(office, most)
    first = asyncio.create_task(groups.ask(numbers[0]))
    await asyncio.to_thread(office.begun.wait)
    others = [asyncio.create_task(groups.ask(number)) for number in numbers[1:]]
    await asyncio.sleep(0)
    office.open.set()
    return list(await asyncio.gather(first, *others, return_exceptions=True))


def test_what_comes_while_a_group_is_worked_on_is_the_next_group():
    office = Office(waits=True)
    answers = asyncio.run(ask_all(office, range(10), most=4))
    assert answers == [2 * number for number in range(10)]
    assert office.groups == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_each_gets_its_own_error():
    office = Office(waits=True)
    answers = asyncio.run(ask_all(office, [1, 2, -3, 4]))
    assert answers[:2] == [2, 4]
    assert answers[3] == 8
    assert str(answers[2]) == "-3 is negative"


def test_a_group_that_fails_fails_for_its_own_and_not_for_the_next():
    office = Office(waits=True)
    answers = asyncio.run(ask_all(office, [1, 12, 13, 14, 15], most=3))
    assert answers[0] == 2
    assert [str(answer) for answer in answers[1:4]] == ["the office is closed"] * 3
    assert answers[4] == 30


def test_who_gave_up_waiting_is_not_worked_on_and_who_gave_up_later_harms_nobody():
    office = Office(waits=True)

    async def scenario() -> list[int]:
        groups = groups_of(office)
        first = asyncio.create_task(groups.ask(1))
        await asyncio.to_thread(office.begun.wait)
        gives_up, stays = asyncio.create_task(groups.ask(2)), asyncio.create_task(groups.ask(3))
        await asyncio.sleep(0)
        gives_up.cancel()
        first.cancel()
        office.open.set()
        return [await stays, await groups.ask(4)]

    assert asyncio.run(scenario()) == [6, 8]
    assert office.groups == [[1], [3], [4]]


def test_an_answer_too_few_is_an_error_for_all():
    async def scenario() -> None:
        groups: Groups[int, int] = Groups(asyncio.to_thread, lambda asked: [], most=2)
        await asyncio.wait_for(groups.ask(1), 20)

    with pytest.raises(ValueError, match="0 answers to 1 questions"):
        asyncio.run(scenario())
