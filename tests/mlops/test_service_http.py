"""The service as HTTP clients expect it: methods, gzip, CORS, keys, rate limit, description."""

import asyncio
import gzip
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families
from service_app import Client, Model, run

from pd_core.core.errors import BadParams
from pd_core.mlops.serving.access import Access
from pd_core.mlops.serving.requests import Limits

KEYS = ("0123456789abcdef", "fedcba9876543210")
GET = ("/", "/health", "/ready", "/model", "/metrics", "/openapi.json")
POST = ("/predict", "/predict/batch")
PUBLIC = ("/", "/health", "/ready", "/openapi.json")
GZIP = {"Content-Encoding": "gzip"}


def request(
    method: str,
    path: str,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> httpx.Response:
    """Send a request to an application of its own."""

    async def send(client: Client) -> httpx.Response:
        return await client.request(method, path, **options)

    response: httpx.Response = run(Model(), send, limits, access)
    return response


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    detail: str = response.json()["detail"]
    return detail


def test_head_has_the_headers_of_get() -> None:
    for path in GET:
        head, get = request("HEAD", path), request("GET", path)
        assert head.status_code == get.status_code == 200
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert request("HEAD", "/predict").status_code == 405


def test_options_and_unsupported_methods_name_the_methods() -> None:
    for paths, methods in ((GET, "GET, HEAD, OPTIONS"), (POST, "OPTIONS, POST")):
        for path in paths:
            options = request("OPTIONS", path)
            assert (options.status_code, options.headers["Allow"]) == (204, methods)
            other = request("DELETE", path)
            assert methods in refused(other, 405)
            assert other.headers["Allow"] == methods
    refused(request("OPTIONS", "/nowhere"), 404)


# gzip


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity"])
def test_a_compressed_body_is_read(encoding: str) -> None:
    seen: list[bytes] = []

    class Recording(Model):
        async def predict(self, images: Any) -> Any:
            seen.extend(images)
            return await super().predict(images)

    body = bytes(range(256)) * 2000  # more than is decompressed at a time

    async def send(client: Client) -> httpx.Response:
        content = body if encoding == "identity" else gzip.compress(body)
        return await client.post(
            "/predict", content=content, headers={"Content-Encoding": encoding}
        )

    assert run(Recording(), send).status_code == 200
    assert seen == [body]


def test_a_small_body_that_becomes_large_is_refused() -> None:
    limits = Limits(image_bytes=10**6)
    body = gzip.compress(bytes(10**8))
    assert len(body) < 10**6

    detail = refused(request("POST", "/predict", limits=limits, content=body, headers=GZIP), 413)

    assert "1000000 bytes" in detail


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"none", "is not gzip"),
        (gzip.compress(b"picture")[:-9], "ends too early"),
        (gzip.compress(b"picture") + b"more", "bytes follow"),
        (zlib.compress(b"picture"), "is not gzip"),
        (b"", "ends too early"),
    ],
    ids=["raw", "short", "long", "deflate", "empty"],
)
def test_a_body_that_is_not_one_gzip_stream_is_refused(body: bytes, reason: str) -> None:
    assert reason in refused(request("POST", "/predict", content=body, headers=GZIP), 400)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip"])
def test_another_encoding_is_refused_by_its_name(encoding: str) -> None:
    response = request(
        "POST", "/predict", content=b"picture", headers={"Content-Encoding": encoding}
    )
    detail = refused(response, 415)
    assert f"'{encoding}'" in detail
    assert "send gzip" in detail
    assert response.headers["Accept-Encoding"] == "gzip"


def test_an_image_sent_by_curl_without_a_content_type_is_read() -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's own
    assert request("POST", "/predict", content=b"picture", headers=headers).status_code == 200


def test_refusals_name_the_content_types_of_their_path() -> None:
    headers = {"Content-Type": "text/csv"}
    one = refused(request("POST", "/predict", content=b"a,b", headers=headers), 415)
    several = refused(request("POST", "/predict/batch", content=b"a,b", headers=headers), 415)
    assert "image/png" in one
    assert "application/json" in several


# CORS


def test_pages_of_allowed_origins_may_send_requests() -> None:
    access = Access(KEYS, origins=["https://example.org"])
    ask = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Authorization, Content-Type",
    }
    allowed = "Access-Control-Allow-Origin"

    preflight = request("OPTIONS", "/predict", access=access, headers=ask)
    assert preflight.status_code == 200
    assert preflight.headers[allowed] == "https://example.org"
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    response = request("POST", "/predict", access=access, headers=ask, content=b"picture")
    assert (response.status_code, response.headers[allowed]) == (401, "https://example.org")

    other = ask | {"Origin": "https://example.com"}
    assert request("OPTIONS", "/predict", access=access, headers=other).status_code == 400
    for closed in (access, None):
        assert allowed not in request("GET", "/health", access=closed, headers=other).headers


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "*.org", "null"])
def test_an_origin_of_another_form_is_refused(origin: str) -> None:
    with pytest.raises(BadParams, match=re.escape(origin)):
        Access(origins=[origin])


# API keys


def test_with_keys_each_of_them_is_accepted_and_nothing_else() -> None:
    access = Access(KEYS)
    for key in KEYS:
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {key}"}
            assert request("GET", "/model", access=access, headers=headers).status_code == 200
    for value in ("", "Bearer", "Bearer x", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}0", "Bearer é"):
        sent = [(b"Authorization", value.encode())] if value else []
        response = request("GET", "/model", access=access, headers=sent)
        assert "Authorization: Bearer" in refused(response, 401)
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_with_keys_only_checks_the_page_and_the_description_need_none() -> None:
    for path in GET:
        status = request("GET", path, access=Access(KEYS)).status_code
        assert status == (200 if path in PUBLIC else 401), path
    for path in POST:
        refused(request("POST", path, access=Access(KEYS), content=b"picture"), 401)
    refused(request("GET", "/monitoring", access=Access(KEYS)), 401)


# Rate limit


def statuses(access: Access, *keys: str) -> list[int]:
    """Return the statuses of requests with these keys, in the same minute."""

    async def send(client: Client) -> list[httpx.Response]:
        return [
            await client.get("/model", headers={"Authorization": f"Bearer {key}"}) for key in keys
        ]

    return [response.status_code for response in run(Model(), send, access=access)]


def test_requests_beyond_the_rate_are_refused_until_the_next_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 60.0 * 1000 + 20
    monkeypatch.setattr("pd_core.mlops.serving.access.time.monotonic", lambda: now)

    async def send(client: Client) -> None:
        nonlocal now
        for _ in range(2):
            for _ in range(3):
                assert (await client.post("/predict", content=b"picture")).status_code == 200
            response = await client.post("/predict", content=b"picture")
            assert "3 requests in a minute" in refused(response, 429)
            assert response.headers["Retry-After"] == "40"
            assert (await client.get("/health")).status_code == 200
            now += 60

    run(Model(), send, access=Access(per_minute=3))


def test_each_key_has_its_own_rate_but_an_unchecked_header_gives_none() -> None:
    first, second = KEYS
    keyed = statuses(Access(KEYS, per_minute=1), first, first, second, second)
    assert keyed == [200, 429, 200, 429]
    guessed = statuses(Access(KEYS, per_minute=2), "guess", "another", "", "a third", first)
    assert guessed == [401, 401, 429, 429, 200]
    assert statuses(Access(per_minute=1), first, second) == [200, 429]


# Description


def description(access: Access | None = None) -> dict[str, Any]:
    content: dict[str, Any] = request("GET", "/openapi.json", access=access).json()
    return content


def test_bodies_parameters_responses_and_errors_are_described() -> None:
    paths = description()["paths"]
    predict, batch = (paths[path]["post"] for path in POST)

    assert set(predict["requestBody"]["content"]) == {
        "application/octet-stream",
        "image/*",
        "multipart/form-data",
    }
    assert set(batch["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    for route in (predict, batch):
        assert [parameter["name"] for parameter in route["parameters"]] == ["top"]
        assert {"200", "400", "408", "413", "415", "503", "504"} <= set(route["responses"])
        assert "422" not in route["responses"]
    for path in paths:
        for route in paths[path].values():
            assert all("description" in response for response in route["responses"].values())
            schema = route["responses"]["default"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}


def test_the_description_is_valid_and_responses_are_as_described() -> None:
    content = description(Access(KEYS, 5))
    validate(content)
    schemas = content["components"]

    def check(response: httpx.Response, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": schemas}
        OAS31Validator(schema).validate(response.json())

    check(request("POST", "/predict", content=b"picture"), "Predictions")
    check(request("POST", "/predict/batch", json={"images": ["aaaa"]}), "BatchPredictions")
    check(request("GET", "/model"), "Model")
    check(request("GET", "/ready"), "Status")
    check(request("POST", "/predict?top=0"), "Problem")
    check(request("POST", "/model"), "Problem")


def test_keys_and_rate_limit_are_described_where_they_hold() -> None:
    for access, security, status in ((None, False, False), (Access(KEYS, 5), True, True)):
        content = description(access)
        assert ("securitySchemes" in content["components"]) is security
        for path, methods in content["paths"].items():
            for route in methods.values():
                restricted = security and path not in PUBLIC
                assert ("security" in route) is restricted
                assert ({"401", "429"} <= set(route["responses"])) is (status and restricted)


def test_the_metrics_are_read_by_prometheus_parser() -> None:
    async def send(client: Client) -> httpx.Response:
        await asyncio.gather(*(client.post("/predict", content=b"picture") for _ in range(3)))
        return await client.get("/metrics")

    families = {
        family.name: family for family in text_string_to_metric_families(run(Model(), send).text)
    }

    for name, family in families.items():
        assert family.documentation, name
        assert family.type != "unknown", name
        assert re.fullmatch(r"promptkd_[a-z]+(_[a-z]+)*", name)
        assert not re.search(r"_(total|count|sum|bucket|ms|kb|mb)$", name)
        counted = [sample.name for sample in family.samples if family.type == "counter"]
        assert all(sample.endswith("_total") for sample in counted), name
    samples = families["promptkd_requests"].samples
    assert [sample.value for sample in samples if sample.labels["route"] == "/predict"] == [3]


def test_an_upload_in_pieces_is_decompressed() -> None:
    body = gzip.compress(b"picture" * 1000)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    assert request("POST", "/predict", content=pieces(), headers=GZIP).status_code == 200
