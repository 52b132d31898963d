import asyncio

from bough.machines.events import PAST_EVENTS, QUEUE_EVENTS, Events


async def test_the_past_then_the_present() -> None:
    events = Events()
    events.emit("created", machine="1", name="web")
    seen = events.watch(since="")
    assert (await anext(seen)).kind == "created"
    following = asyncio.ensure_future(anext(seen))
    await asyncio.sleep(0)
    events.emit("running", machine="1", name="web", detail="now")
    assert (await following).to_dict()["detail"] == "now"
    await seen.aclose()


async def test_memory_is_bounded_for_a_watcher_that_does_not_read() -> None:
    events = Events()
    seen = events.watch(since="")
    events.emit("first", machine="1", name="web")
    await anext(seen)
    for _ in range(PAST_EVENTS + QUEUE_EVENTS):
        events.emit("tick", machine="1", name="web")
    count = 0
    async with asyncio.timeout(5):
        while count < QUEUE_EVENTS:
            await anext(seen)
            count += 1
    assert len([event async for event in _at_once(events)]) == PAST_EVENTS


async def _at_once(events: Events):  # type: ignore[no-untyped-def]
    watcher = events.watch(since="")
    while True:
        try:
            async with asyncio.timeout(0.05):
                yield await anext(watcher)
        except (TimeoutError, StopAsyncIteration):
            return
