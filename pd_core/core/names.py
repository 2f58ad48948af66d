"""Names in messages, and different names with one meaning."""

from collections.abc import Hashable, Iterable, Sequence


def printable(text: str) -> str:
    """Escape characters that cannot be seen, such as control characters and zero-width spaces."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str]) -> str:
    """Quote names and join them: `'a', 'b' and 'c'`."""
    # Errors are one line, in which several blanks become one.
    shown = [printable(name).replace("  ", r" \x20") for name in names]
    quoted = [f"'{name}'" for name in shown]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def clashes(names: Sequence[str], keys: Iterable[Hashable]) -> list[list[str]]:
    """Return the groups of different names with equal keys; the same name twice is no clash."""
    groups: dict[Hashable, dict[str, None]] = {}
    for name, key in zip(names, keys, strict=True):
        groups.setdefault(key, {})[name] = None
    return [list(group) for group in groups.values() if len(group) > 1]
