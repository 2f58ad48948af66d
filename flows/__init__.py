"""Prefect flows around DVC's pipeline; every stage is run by DVC."""

import os
import sys

from pd_core.core.errors import require

require()  # before anything else is imported

from pd_core.core.errors import BadParams  # noqa: E402
from pd_core.pipeline.redaction import masked  # noqa: E402
from pd_core.pipeline.settings import load_settings, telemetry_off  # noqa: E402


def _configure_server() -> None:
    """Pass the server's address on to Prefect, which ends in a traceback on an unreadable .env."""
    try:
        address = load_settings().prefect_api_url
    except BadParams as error:
        sys.stderr.write(f"error: {masked(str(error))}\n")
        raise SystemExit(2) from None
    if address:
        os.environ["PREFECT_API_URL"] = address
    # Of Prefect's temporary server; its default of 20 seconds is too short on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


# Prefect reads its settings when it is imported.
telemetry_off()
_configure_server()
