"""Names of the user's own classes, compared as CLIP's tokenizer sees them.

No model is needed; tokens, which depend on it, are compared in `models.class_texts`.
"""

import html
import unicodedata
from collections.abc import Sequence

import regex

from pd_core.core.errors import BadData
from pd_core.core.names import clashes, listed, printable
from pd_core.data.loading.splits import Splits

_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
"""CLIP's words: blanks between letters, digits and punctuation make no difference."""
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # such as zero-width spaces


def normalized(name: str) -> str:
    """Return a class name in the Unicode form NFC: file systems differ in the form of a name."""
    return unicodedata.normalize("NFC", name)


def words(name: str) -> tuple[str, ...]:
    """Return the words of a class name that CLIP's tokenizer sees, without invisible characters."""
    import ftfy  # takes a tenth of a second, for users' own classes only

    text = html.unescape(html.unescape(ftfy.fix_text(name.replace("_", " "))))
    return tuple(_WORDS.findall(_INVISIBLE.sub("", text).lower()))


def check_names(names: Sequence[str]) -> None:
    """Check that class names have words, and that no two of them have the same.

    Raises:
        BadData: A name has no words, or different names have the same.
    """
    if empty := [name for name in names if not words(name)]:
        raise BadData(f"class name {listed(empty[:1])} has no words: rename the class")
    if same := clashes(names, map(words, names)):
        raise BadData(
            f"classes {listed(same[0])} have the same text for CLIP, which ignores case, "
            "underscores, blanks and invisible characters: merge them, or rename all but one"
        )


def unicode_forms(splits: Splits) -> list[str]:
    """Return a line for each class with folders in several Unicode forms of its name."""
    forms: dict[str, set[str]] = {}
    for item in (*splits.train, *splits.val, *splits.test):
        folders = item.path.split("/")[:-1]
        same = {folder for folder in folders if normalized(folder) == item.name}
        forms.setdefault(item.name, set()).update(same)
    return [
        f"class '{printable(name)}' has folders in {len(folders)} Unicode forms of its name, which "
        "are read as one class"
        for name, folders in forms.items()
        if len(folders) > 1
    ]
