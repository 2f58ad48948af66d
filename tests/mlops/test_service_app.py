"""The application around a fake model that is slow, busy or broken."""

import asyncio
import time

import httpx
import pytest
from service_app import Client, Model, active, run, version

from pd_core.core.errors import BadArtifact, PdError
from pd_core.mlops.registry import Version
from pd_core.mlops.serving.model_manager import ActiveModel, ModelManager
from pd_core.mlops.serving.requests import Limits


async def post(client: Client) -> httpx.Response:
    return await client.post("/predict", content=b"picture")


def test_a_failure_is_reported_without_its_reason() -> None:
    response = run(Model(error=RuntimeError("secret of /home/me/weights")), post)

    assert response.status_code == 500
    assert set(response.json()) == {"detail"}
    assert "secret" not in response.text


async def _often(client: Client) -> list[httpx.Response]:
    return list(await asyncio.gather(*(post(client) for _ in range(40))))


def test_requests_that_wait_go_through_the_model_together() -> None:
    model = Model(seconds=0.05)

    responses = run(model, _often, Limits(batch=16))

    assert {response.status_code for response in responses} == {200}
    assert responses[0].json()["predictions"][0] == {"name": "first", "probability": 0.75}
    assert sum(model.batches) == 40
    assert max(model.batches) == 16
    assert len(model.batches) <= 5  # the first is there alone


@pytest.mark.parametrize(
    "limits", [Limits(waiting=10), Limits(held_bytes=10 * len(b"picture"))], ids=["queue", "memory"]
)
def test_requests_beyond_the_capacity_are_refused_until_later(limits: Limits) -> None:
    responses = run(Model(seconds=0.2), _often, limits)

    refused = [response for response in responses if response.status_code == 503]
    assert len(refused) == 30
    assert sum(response.status_code == 200 for response in responses) == 10
    assert {response.headers["Retry-After"] for response in refused} == {"1"}


def test_capacity_is_free_again_afterwards() -> None:
    async def twice(client: Client) -> list[httpx.Response]:
        return [*await _often(client), *await _often(client)]

    responses = run(Model(), twice, Limits(waiting=40, held_bytes=40 * len(b"picture")))

    assert {response.status_code for response in responses} == {200}


def test_a_classification_ends_by_its_timeout_while_others_are_served() -> None:
    async def both(client: Client) -> tuple[httpx.Response, float]:
        late = asyncio.ensure_future(post(client))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        assert (await client.get("/health")).status_code == 200
        return await late, time.monotonic() - start

    response, seconds = run(Model(seconds=5), both, Limits(answer_seconds=0.3))

    assert response.status_code == 504
    assert seconds < 3


def test_without_a_model_it_is_not_ready() -> None:
    model = Model()
    model.broken = True

    async def ready(client: Client) -> httpx.Response:
        return await client.get("/ready")

    assert run(model, ready).status_code == 503


# The model manager


def update(manager: ModelManager, times: int = 1) -> None:
    async def repeat() -> None:
        for _ in range(times):
            await manager.update()

    asyncio.run(repeat())


def test_a_version_that_cannot_be_loaded_is_logged_once_and_not_retried_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[int] = []

    def load(version: Version) -> ActiveModel:
        tried.append(version.number)
        raise BadArtifact("no weights")

    manager = ModelManager(active(Model()), find=lambda: version(2), load=load)
    update(manager, 5)

    assert manager.current.version.number == 1
    assert tried == [2]
    assert caplog.text.count("no weights") == 1


def test_a_registry_that_is_down_for_a_while_changes_nothing() -> None:
    replies: list[Version | Exception] = [PdError("down"), OSError("down"), version(2)]

    def find() -> Version:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    manager = ModelManager(active(Model()), find=find, load=lambda _: active(Model(), 2))
    update(manager, 2)
    assert manager.current.version.number == 1
    update(manager)
    assert manager.current.version.number == 2


def test_other_aliases_of_the_same_version_load_nothing() -> None:
    manager = ModelManager(
        active(Model()),
        find=lambda: version(1, "champion", "challenger"),
        load=lambda _: pytest.fail("it is loaded already"),
    )
    update(manager)

    assert manager.current.version.aliases == ("champion", "challenger")
