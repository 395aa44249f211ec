"""Requests that come at the same time, worked on together.

What belongs here: gathering what waits into groups of bounded size. What does not: what is done with a group.

A table library costs as much for one row as for a hundred, and so does a transaction that is flushed to a disk. While
one group is worked on, the next one gathers by itself: nobody waits for company, and under load a group is large.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


class Groups(Generic[A, R]):
    """One group at a time, in the order of arrival.

    Parameters
    ----------
    work
        Runs a function in a thread: `Service.work`.
    function
        Gets what was asked, at most ``most`` at once, and returns an answer or an error for each, in the same order.
        What it raises is the answer to all of the group.
    most
        How many at most are worked on together.

    Notes
    -----
    A request that is given up while it waits is not worked on. One whose group has begun is finished with it.
    """

    def __init__(
        self,
        work: Callable[..., Awaitable[Any]],
        function: Callable[[Sequence[A]], Sequence[R | Exception]],
        *,
        most: int = 64,
    ) -> None:
        self._work, self._function, self._most = work, function, most
        self._waiting: deque[tuple[A, asyncio.Future[R]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, asked: A) -> R:
        """Return the answer to one question, or raise its error."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while group := self._next():
            try:
                answers: Sequence[R | Exception] = await self._work(self._function, [asked for asked, _ in group])
                if len(answers) != len(group):
                    raise ValueError(f"{len(answers)} answers to {len(group)} questions")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 - whatever it is, those who asked are told
                answers = [error] * len(group)
            for (_, future), answer in zip(group, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _next(self) -> list[tuple[A, "asyncio.Future[R]"]]:
        group: list[tuple[A, asyncio.Future[R]]] = []
        while self._waiting and len(group) < self._most:
            asked, future = self._waiting.popleft()
            if not future.done():
                group.append((asked, future))
        return group
