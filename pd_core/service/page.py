"""The upload page, and the headers that let it run its own code and no other."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

TEXT = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _digest(element: str) -> str:
    """Return the hash of what stands in the page's only such element, as the policy wants it."""
    code = TEXT.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
