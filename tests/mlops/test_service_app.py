"""The application around a model that is slow, full or broken, as no real one is when asked to."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from pd_core.core.errors import BadArtifact, PdError
from pd_core.mlops.registry import Version
from pd_core.mlops.serving import app as service
from pd_core.mlops.serving.model_manager import Keeper, Served
from pd_core.mlops.serving.requests import Limits
from pd_core.mlops.serving.worker import Facts, Judged

Client = httpx.AsyncClient


class Model:
    """Says "first" to everything, after a while or not at all."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.facts = Facts(("first", "second"), 8, {})
        self.broken = False
        self.batches: list[int] = []
        self._seconds, self._error = seconds, error

    async def judge(self, pictures: Sequence[bytes]) -> Judged:
        self.batches.append(len(pictures))
        await asyncio.sleep(self._seconds)
        if self._error:
            raise self._error
        answers = np.tile(np.array([[0.75, 0.25]], np.float32), (len(pictures), 1))
        return Judged(("",) * len(pictures), answers, answers)


def version(number: int = 1, *aliases: str) -> Version:
    return Version("promptkd-greek", number, {}, aliases, 0.0)


def served(model: Model, number: int = 1) -> Served:
    stand_in: Any = model
    return Served(version(number), stand_in)


def ask(
    model: Model, do: Callable[[Client], Coroutine[Any, Any, Any]], limits: Limits | None = None
) -> Any:
    """Build the application and let a client do something with it."""
    keeper = Keeper(served(model), find=version, load=lambda _: served(model))
    app = service.build(service.Service(keeper, limits or Limits()), poll=60)

    async def all_of_it() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with Client(transport=transport, base_url="http://service") as client:
            return await do(client)

    return asyncio.run(all_of_it())


def post(client: Client) -> Awaitable[httpx.Response]:
    return client.post("/predict", content=b"picture")


def test_what_breaks_inside_stays_inside() -> None:
    answer = ask(Model(error=RuntimeError("secret of /home/me/weights")), lambda c: _once(c))

    assert answer.status_code == 500
    assert answer.json() == {"detail": "the service failed; its log says why"}


async def _once(client: Client) -> httpx.Response:
    return await post(client)


async def _often(client: Client) -> list[httpx.Response]:
    return list(await asyncio.gather(*(post(client) for _ in range(40))))


def test_requests_that_wait_go_through_the_model_together() -> None:
    model = Model(seconds=0.05)

    answers = ask(model, _often, Limits(batch=16))

    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json()["predictions"][0] == {"name": "first", "probability": 0.75}
    assert sum(model.batches) == 40
    assert max(model.batches) == 16
    assert len(model.batches) <= 5  # the first is there alone


def test_who_comes_when_all_places_are_taken_is_asked_to_come_again() -> None:
    answers = ask(Model(seconds=0.2), _often, Limits(waiting=10))

    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 30
    assert sum(answer.status_code == 200 for answer in answers) == 10
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


def test_uploads_may_hold_so_much_memory_together_and_no_more() -> None:
    answers = ask(Model(seconds=0.2), _often, Limits(held_bytes=10 * len(b"picture")))

    assert sum(answer.status_code == 200 for answer in answers) == 10


def test_places_are_free_again_afterwards() -> None:
    async def twice(client: Client) -> list[httpx.Response]:
        return [*await _often(client), *await _often(client)]

    answers = ask(Model(), twice, Limits(waiting=40, held_bytes=40 * len(b"picture")))

    assert {answer.status_code for answer in answers} == {200}


def test_an_answer_that_takes_too_long_is_given_up_while_others_are_served() -> None:
    async def both(client: Client) -> tuple[httpx.Response, float]:
        late = asyncio.ensure_future(post(client))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        assert (await client.get("/health")).status_code == 200
        return await late, time.monotonic() - begun

    answer, seconds = ask(Model(seconds=5), both, Limits(answer_seconds=0.3))

    assert answer.status_code == 504
    assert seconds < 3


def test_without_a_model_it_is_not_ready() -> None:
    model = Model()
    model.broken = True

    async def ready(client: Client) -> httpx.Response:
        return await client.get("/ready")

    assert ask(model, ready).status_code == 503


# The keeper


def look(keeper: Keeper, times: int) -> None:
    async def again() -> None:
        for _ in range(times):
            await keeper.look()

    asyncio.run(again())


def test_a_version_that_cannot_be_loaded_is_told_of_once_and_not_tried_all_the_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[int] = []

    def load(meant: Version) -> Served:
        tried.append(meant.number)
        raise BadArtifact("no weights")

    keeper = Keeper(served(Model()), find=lambda: version(2), load=load)
    look(keeper, 5)

    assert keeper.current.version.number == 1
    assert tried == [2]
    assert caplog.text.count("no weights") == 1


def test_a_registry_that_is_down_for_a_while_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replies: list[Version | Exception] = [PdError("down"), OSError("down"), version(2)]

    def find() -> Version:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    keeper = Keeper(served(Model()), find=find, load=lambda _: served(Model(), 2))
    look(keeper, 2)
    assert keeper.current.version.number == 1
    with caplog.at_level(logging.INFO):
        look(keeper, 1)
    assert keeper.current.version.number == 2


def test_other_aliases_of_the_same_version_load_nothing() -> None:
    def load(_: Version) -> Served:
        raise AssertionError("it is loaded already")

    keeper = Keeper(served(Model()), find=lambda: version(1, "champion", "challenger"), load=load)
    look(keeper, 1)

    assert keeper.current.version.aliases == ("champion", "challenger")
