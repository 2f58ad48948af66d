"""The documentation's pages, and the commands and code that they show."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
TEXT = "\n".join(PAGES.values())
_PROGRAMS = "(?:make|dvc|promptkd|python|mlflow|docker|prefect|curl|cd|export)"


def block(language: str, word: str) -> str:
    """Return the one fenced block of a language that has a word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    (match,) = [text for text in blocks if word in text]
    return str(match)


def commands(program: str = _PROGRAMS) -> list[str]:
    """Return the commands of a program, each once: indented lines, and code in backticks."""
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    places = re.findall(rf"^    ({program} .+)$|`({program}\s[^`]+)`", prose, re.MULTILINE)
    texts = (re.split(r"\s{2,}#", line or code)[0] for line, code in places)
    return list(dict.fromkeys(" ".join(text.split()) for text in texts))
