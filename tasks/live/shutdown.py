"""Stops a stream on a POSIX signal, without waiting for work that still runs in a thread."""

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
    """Within the block, the first SIGTERM and the first SIGINT set ``stop``.

    A second signal of the same kind is handled as it was before the block. In other threads than the main thread
    nothing changes, because Python handles signals only in the main thread.
    """
    loop = asyncio.get_running_loop()
    previous: dict[signal.Signals, Any] = {}

    def handle_first(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)
        signal.signal(number, previous[number])

    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.getsignal(number)
            loop.add_signal_handler(number, handle_first, number)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if loop.remove_signal_handler(number):
                signal.signal(number, handler)


async def run_until_stopped(stop: asyncio.Event, work: Callable[[], T]) -> T | None:
    """Runs ``work`` in a thread and returns its result or raises its error; returns None once ``stop`` is set.

    The thread is then not joined, and its result is dropped. It is a daemon thread, which does not keep the process
    alive; a thread of a pool would.
    """
    loop = asyncio.get_running_loop()
    outcome = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if not outcome.done():
            outcome.set_exception(error) if error else outcome.set_result(result)

    def run_work() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed: the result is not needed any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run_work, daemon=True).start()
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({outcome, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if outcome.done():
        return outcome.result()
    outcome.cancel()
    return None
