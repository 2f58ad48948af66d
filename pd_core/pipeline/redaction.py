"""Redaction of secrets in messages, logs, tags and tracebacks."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values

from pd_core.pipeline.experiment import origin

MASK = "***"
_ENV = Path(".env")

# To the last @, so that a password with a slash or an @ in it does not end too early.
_LOGIN = re.compile(r"(?<=://)[^\s'\"<>]*@")
_QUERY = re.compile(
    r"([?&][\w-]*(?:password|token|secret|key|signature|credential)=)[^&\s'\"]+", re.IGNORECASE
)
_HEADER = re.compile(r"(authorization['\"]?: ?['\"]?\w+ )[\w.~+/=-]+", re.IGNORECASE)
_SECRET = re.compile(
    r"(PASSWORD|PASSWD|SECRET|TOKEN|KEYS?|KEY_ID|AUTH_STRING|CONNECTION_STRING)$", re.IGNORECASE
)
_SHORTEST = 8  # characters; a shorter value would be found inside ordinary words


def masked(text: str) -> str:
    """Return a text without secrets.

    Masked are logins of addresses, passwords and signatures in their query strings, authorization
    headers, and all values of variables whose names mark them as secrets.
    """
    for value in sorted(_secrets(), key=len, reverse=True):  # a value may be part of another
        text = text.replace(value, MASK)
    text = _QUERY.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", text))
    return _HEADER.sub(rf"\1{MASK}", text)


def without_login(address: str) -> str:
    """Return an address without name and password."""
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def env_file() -> Path:
    """Return the file with variables in addition to those of the environment; it may not exist.

    It is `.env` in this folder, or in the root of the DVC project that this folder is in. DVC's
    temporary copies of a project have the project's.
    """
    here = origin(Path.cwd())
    if _ENV.is_file():
        return _ENV
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir() and (folder / _ENV).is_file():
            return folder / _ENV
        if (folder / ".git").exists():  # another project may be around this one
            break
    return _ENV


def has_login(address: str) -> bool:
    """Return True if an address has a name or a password."""
    return _LOGIN.search(address) is not None


@contextmanager
def masked_tracebacks() -> Iterator[None]:
    """Print the traceback of an unexpected exception without secrets, and exit with status 1.

    `sys.excepthook` does not serve: typer replaces it.
    """
    try:
        yield
    except Exception:
        sys.stderr.write(masked(traceback.format_exc()))
        raise SystemExit(1) from None


def variables() -> dict[str, str]:
    """Return the variables of the environment and of `.env`; the environment has precedence."""
    try:
        file = dotenv_values(env_file())
    except (OSError, UnicodeDecodeError):  # reported when the settings are read
        file = {}
    return {**{name: value for name, value in file.items() if value}, **os.environ}


def _secrets() -> set[str]:
    secrets: set[str] = set()
    for name, value in variables().items():
        if _SECRET.search(name):
            secrets |= {value, *map(str.strip, value.split(","))}  # PD_SERVE_API_KEYS is a list
        if _LOGIN.search(value):
            secrets |= _passwords(value)
    return {value for value in secrets if len(value) >= _SHORTEST}


def _passwords(address: str) -> set[str]:
    """Return an address's password, as it is written and decoded."""
    login = _LOGIN.findall(address)[0].removesuffix("@")
    password = login.partition(":")[2]
    try:
        of_host = urlsplit(address).password or ""
    except ValueError:
        of_host = ""
    return {password, unquote(password), of_host, unquote(of_host)}
