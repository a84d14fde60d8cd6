"""Work that waits, gives way and is taken up again."""

import asyncio

from rag.models.spare import SpareTime

from .conftest import until


async def test_jobs_are_done_one_after_the_other_and_each_once() -> None:
    spare = SpareTime(lambda: False, quiet_s=0)
    done: list[str] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0)
        done.append(name)

    spare.add("a", lambda: work("a"))
    spare.add("a", lambda: work("a"))
    spare.add("b", lambda: work("b"))
    spare.add("c", lambda: work("c"), urgent=True)
    await until(lambda: len(done) == 3)
    assert done == ["c", "a", "b"]
    await spare.close()


async def test_nothing_is_begun_while_somebody_asks() -> None:
    asking = True
    began = asyncio.Event()

    async def work() -> None:
        began.set()

    spare = SpareTime(lambda: asking, quiet_s=0)
    spare.add("a", work)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not began.is_set()
    asking = False
    await asyncio.wait_for(began.wait(), 10)
    await spare.close()


async def test_a_job_gives_way_and_is_begun_anew() -> None:
    spare = SpareTime(lambda: False, quiet_s=0)
    attempts = 0
    finished = asyncio.Event()
    hold = asyncio.Event()
    began = asyncio.Event()

    async def work() -> None:
        nonlocal attempts
        attempts += 1
        began.set()
        if attempts == 1:
            await hold.wait()
        finished.set()

    spare.add("a", work)
    await asyncio.wait_for(began.wait(), 10)
    spare.stir()
    await asyncio.wait_for(finished.wait(), 10)
    assert attempts == 2
    await spare.close()


async def test_a_job_that_fails_does_not_keep_the_next_from_its_turn() -> None:
    spare = SpareTime(lambda: False, quiet_s=0)
    done = asyncio.Event()

    async def bad() -> None:
        raise OSError("no")

    async def good() -> None:
        done.set()

    spare.add("bad", bad)
    spare.add("good", good)
    await asyncio.wait_for(done.wait(), 10)
    await spare.close()


async def test_closing_stops_what_is_being_done() -> None:
    spare = SpareTime(lambda: False, quiet_s=0)
    began, stopped = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    spare.add("a", work)
    await asyncio.wait_for(began.wait(), 10)
    await spare.close()
    assert stopped.is_set()
