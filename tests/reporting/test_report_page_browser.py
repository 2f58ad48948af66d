"""The page of many data sets, in a real browser: small, fast, whole on every screen."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser
from page_project import PROTOCOLS, ROOT, gathered, make, protocols
from PIL import Image

from pd_core.data.loading.splits import Protocol
from pd_core.evaluation import metrics
from pd_core.evaluation.class_metrics import class_metrics
from pd_core.reporting import page_content
from pd_core.reporting.page import AVERAGE, across, beside, paper
from pd_core.reporting.page_dataset import DatasetPage, Gallery, Result
from pd_core.reporting.page_models import TRAINED

pytestmark = [pytest.mark.slow, pytest.mark.ci]

SCREENS = {"desk": (1280, 900), "phone": (390, 844)}


def large(name: str, classes: int = 48, images: int = 24) -> DatasetPage:
    """Make a data set as large as the embedded ones, with random answers and long names."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    people = {}
    for who in TRAINED:
        shares = rng.dirichlet(np.full(classes, 0.1), len(labels))
        answers = np.where(rng.random(len(labels)) < 0.6, labels, shares.argmax(axis=1))
        people[who] = Result(
            60.0,
            metrics.class_accuracies(labels, answers, classes),
            metrics.most_confused(labels, answers),
            class_metrics(labels, answers, classes),
            metrics.calibration(shares.max(axis=1), shares.argmax(axis=1) == labels),
        )
    curve = tuple(
        {"loss": 5.0 / n, "accuracy": 9.0 * n, "agreement": 8.0 * n} for n in range(1, 11)
    )
    return DatasetPage(
        name,
        f"Letters of {name}",
        tuple(
            f"greek capital letter number_{n} without_any_place_to_break" for n in range(classes)
        ),
        classes // 2,
        (images,) * classes,
        dict.fromkeys(TRAINED, curve),
        people,
        notes=("a note " * 20,),
    )


def photo() -> str:
    """Make a picture of the gallery's size that cannot be made small."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module", name="eleven")
def _eleven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page of eleven large data sets, with pictures and the paper's numbers."""
    made = make(tmp_path_factory.mktemp("made"))
    shutil.copy(ROOT / "params.yaml", made)
    names = [name for name in paper()["base_to_novel"] if name != AVERAGE]
    protocols(made, datasets=dict.fromkeys(PROTOCOLS, names), source="imagenet", wild=30.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        page = gathered(made)
    small = page.pages[0]
    assert small.gallery is not None
    shown = [replace(one, data=photo()) for one in small.gallery.shown]
    pictures = Gallery(1152, 100, 80, 60, tuple(shown[n % len(shown)] for n in range(8)))
    sections = (replace(large(f"set_{n}"), gallery=pictures) for n in range(11))
    measured = page.seeds.protocols
    long = f"{'a data set with a long name ' * 3}without_any_place_to_break_it_somewhere"
    whole = replace(
        page,
        pages=(small, *sections),
        titles={**page.titles, "dtd": long},
        beside=beside(measured[Protocol.BASE_TO_NOVEL], names),
        beside_seeds=page.seeds.seeds,
        across=across(measured, "imagenet", names),
    )
    return page_content.write(whole, made / "build")


@pytest.fixture(scope="module", name="tab")
def _tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def test_eleven_data_sets_are_small_open_fast_and_ask_for_nothing(
    eleven: Path, tab: Browser
) -> None:
    assert eleven.stat().st_size < 5_000_000
    tab.show(width=1280, height=900)
    tab.forget()
    start = time.monotonic()
    tab.open(eleven.as_uri())
    assert time.monotonic() - start < 2
    assert [url for url in tab.asked if not url.startswith("data:")] == [eleven.as_uri()]
    assert tab.complaints == []
    assert tab.failed == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_everything_fits_on_the_screen(eleven: Path, tab: Browser, screen: str, dark: bool) -> None:
    width, height = SCREENS[screen]
    tab.show(width=width, height=height, dark=dark, phone=screen == "phone")
    tab.open(eleven.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    overflowing = (
        "[...document.querySelectorAll('body *:not(svg *)')].filter((one) =>"
        " one.getBoundingClientRect().right > innerWidth"
        " || one.clientWidth && one.scrollWidth > one.clientWidth + 1)"
        ".map((one) => one.tagName + ' ' + one.textContent.slice(0, 60))"
    )
    assert tab.evaluate(overflowing) == []
    letters = (
        "[...document.querySelectorAll('svg')].filter((one) => [...one.querySelectorAll('text')]"
        ".some((text) => { const [a, b] = [text, one].map((x) => x.getBoundingClientRect());"
        " return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1"
        " || a.top < b.top - 1; })).map((one) => one.ariaLabel)"
    )
    assert tab.evaluate(letters) == []
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    assert tab.evaluate(ink) == tab.evaluate("getComputedStyle(document.body).color")


def test_every_link_leads_to_a_heading_and_every_picture_is_described(
    eleven: Path, tab: Browser
) -> None:
    tab.open(eleven.as_uri())
    dead = (
        "[...document.querySelectorAll('nav a')]"
        ".filter((one) => !document.getElementById(one.hash.slice(1))).length"
    )
    assert tab.evaluate(dead) == 0
    assert tab.evaluate("[...document.querySelectorAll('img')].every((one) => one.alt)")
    assert tab.evaluate("[...document.querySelectorAll('svg')].every((one) => one.ariaLabel)")
    ids = "[...document.querySelectorAll('[id]')].map((one) => one.id)"
    found = tab.evaluate(ids)
    assert len(found) == len(set(found))
