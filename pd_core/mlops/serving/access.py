"""Access to the service: API keys, rate limit, and origins of web pages (CORS)."""

from __future__ import annotations

import hmac
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from pd_core.core.errors import BadParams

_BEARER = HTTPBearer(auto_error=False, description="One of the keys in PD_SERVE_API_KEYS.")
_ORIGIN = re.compile(r"\*|https?://[^/\s]+")
_WINDOW_SECONDS = 60
_REQUEST_HEADERS = ("Authorization", "Content-Encoding", "Content-Type")
_RESPONSE_HEADERS = ("Retry-After",)


@dataclass(frozen=True)
class Access:
    """Restrictions of access.

    Attributes:
        keys: API keys; if empty, no key is required.
        per_minute: requests of a client in a minute; 0 for any number.
        origins: of web pages that may send requests; `*` for all.
    """

    keys: Sequence[str] = ()
    per_minute: int = 0
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the origins.

        Raises:
            BadParams: one has another form than browsers send.
        """
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise BadParams(
                    f"origin '{origin}'; give scheme and host, like https://example.org, or *"
                )

    def dependencies(self) -> list[Any]:
        """Return the dependencies of a restricted route."""
        limit = [Depends(RateLimit(self.per_minute, self.keys))] if self.per_minute else []
        return [*limit, *([Depends(KeyCheck(self.keys))] if self.keys else [])]

    def statuses(self) -> tuple[int, ...]:
        """Return the statuses of requests that are refused."""
        return (401,) * bool(self.keys) + (429,) * bool(self.per_minute)

    def allow_origins(self, app: FastAPI) -> None:
        """Add the CORS headers to an application."""
        if self.origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self.origins,
                allow_methods=("GET", "HEAD", "POST"),
                allow_headers=_REQUEST_HEADERS,
                expose_headers=_RESPONSE_HEADERS,
            )


def _is_known(sent: str, keys: Sequence[str]) -> bool:
    # All are compared, each in constant time: the duration reveals nothing about them.
    return bool(sum(hmac.compare_digest(sent.encode(), key.encode()) for key in keys))


class KeyCheck:
    """Dependency that requires an API key, as `Authorization: Bearer <key>`."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Accept any of the keys."""
        self._keys = keys

    async def __call__(
        self, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        """Raise an HTTPException, 401, without a known key."""
        sent = credentials.credentials if credentials is not None else ""
        if not _is_known(sent, self._keys):
            reason = "the API key is unknown" if sent else "an API key is required"
            raise HTTPException(
                401,
                f"{reason}; send the header 'Authorization: Bearer <key>'",
                headers={"WWW-Authenticate": "Bearer"},
            )


class RateLimit:
    """Dependency that counts the requests of each client in a minute.

    A client is a known key, else an address: guesses of keys are counted together.
    """

    def __init__(self, per_minute: int, keys: Sequence[str]) -> None:
        """Start the first minute."""
        self._per_minute, self._keys = per_minute, keys
        self._minute = 0.0
        self._counts: Counter[str] = Counter()

    async def __call__(self, request: Request) -> None:
        """Raise an HTTPException, 429, for a request beyond the limit."""
        minute, second = divmod(time.monotonic(), _WINDOW_SECONDS)
        if minute != self._minute:
            self._minute, self._counts = minute, Counter()
        scheme, key = get_authorization_scheme_param(request.headers.get("authorization"))
        address = request.client.host if request.client is not None else ""
        client = key if scheme.lower() == "bearer" and _is_known(key, self._keys) else address
        self._counts[client] += 1
        if self._counts[client] > self._per_minute:
            wait = _WINDOW_SECONDS - int(second)
            raise HTTPException(
                429,
                f"more than {self._per_minute} requests in a minute; try again in {wait} seconds",
                headers={"Retry-After": str(wait)},
            )
