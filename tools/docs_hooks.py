"""MkDocs hooks: pages link to files outside `docs/`, which become part of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
START = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages at the root of the repository."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root, and every file outside `docs/` that some page links to."""
    waiting = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()] + list(START)
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if not path.startswith(f"{DOCS}/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += [link for link in local_links(path) if (ROOT / link).is_file()]
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Rewrite a page's links, from the folders of the repository to those of the site."""
    path = page.file.src_uri
    source = f"{DOCS}/{path}" if (ROOT / DOCS / path).is_file() else path

    def rewritten(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        if target is None:
            return match[0]
        in_site = target.removeprefix(f"{DOCS}/")
        link = posixpath.relpath(in_site, posixpath.dirname(path) or ".")
        fragment = urlsplit(match[1]).fragment
        return f"]({link}{'#' if fragment else ''}{fragment})"

    return _LINK.sub(rewritten, markdown)


def local_links(path: str) -> list[str]:
    """Return the files that a Markdown file links to, as paths in the repository."""
    links = _LINK.findall((ROOT / path).read_text(encoding="utf-8"))
    return [target for link in links if (target := _target(path, link)) is not None]


def _target(source: str, link: str) -> str | None:
    """Return the file of a relative link; None for an address or an anchor of the same page."""
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), parts.path))
