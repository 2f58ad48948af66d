"""Folders of handwritten digits as image files, as a user may have them."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ("digit zero", "digit one", "digit two", "digit three")


def write(folder: Path, labelled: int = 3, test: int = 2, unlabelled: int = 8) -> Path:
    """Write so many images of each of `CLASSES`; the unlabelled ones into one folder."""
    pixels, digits = load_digits(return_X_y=True)
    for digit, name in enumerate(CLASSES):
        images = pixels[digits == digit]
        parts = [f"labelled/{name}"] * labelled + [f"test/{name}"] * test
        parts += ["unlabelled"] * unlabelled
        for number, part in enumerate(parts):
            file = folder / part / f"{digit}-{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            ink = Image.fromarray((images[number].reshape(8, 8) * 15.9).astype("uint8"))
            ink.resize((64, 64)).save(file)
    return folder
