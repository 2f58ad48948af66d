"""Prefect flows. They call DVC for the stages and do nothing else themselves."""

import os
import sys

from pd_core.core.errors import require

require()  # before anything else is imported

from pd_core.core.errors import BadParams  # noqa: E402
from pd_core.pipeline.redaction import masked  # noqa: E402
from pd_core.pipeline.settings import load_settings, telemetry_off  # noqa: E402


def _set_server() -> None:
    """Set the server's address where Prefect looks for it, and how long it waits for its own.

    Prefect itself ends in a traceback where `.env` cannot be read, so this says why before.
    """
    try:
        address = load_settings().prefect_api_url
    except BadParams as error:
        sys.stderr.write(f"error: {masked(str(error))}\n")
        raise SystemExit(2) from None
    if address:
        os.environ["PREFECT_API_URL"] = address
    # Of the one that Prefect starts itself if none is set; 20 are too few for a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


# Prefect reads its settings when it is imported.
telemetry_off()
_set_server()
