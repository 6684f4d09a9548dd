"""How a stream is told to end, and how nothing that it waits for keeps it from ending."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def stop_on_sigterm(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop`` for the block; a second one does what it did before. Only in a main thread."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def once(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)
        signal.signal(number, before[number])

    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, once, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            if loop.remove_signal_handler(number):
                signal.signal(number, handler)


async def run_until_stopped(stop: asyncio.Event, work: Callable[[], T]) -> T | None:
    """What ``work`` returns or raises in a thread; None as soon as ``stop`` is set.

    The thread is then left behind, and being a daemon keeps no process alive: a pool would wait for it.
    """
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not answer.done():
            answer.set_exception(error) if error else answer.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({answer, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if answer.done():
        return answer.result()
    answer.cancel()
    return None
