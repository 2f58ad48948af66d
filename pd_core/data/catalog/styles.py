"""Styles of the embedded data sets: from ink to small colour images.

A `Style` turns ink, float32 (N, S, S) from 0 (paper) to 1, into colour images, float32 (N, S, S, 3)
from 0 to 1. Images of a data set differ by what its random generator draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

Ink = NDArray[np.float32]
Images = NDArray[np.float32]
Rng = np.random.Generator
Style = Callable[[Ink, Rng], Images]

IMAGE_SIZE = 32
"""Side of an image, in pixels."""

_GRID = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
_CENTRED = _GRID / (IMAGE_SIZE - 1) * 2 - 1  # from -1 to 1


@dataclass(frozen=True)
class Pose:
    """Ranges of the random affine transform of a master."""

    rotation: float = 10.0  # degrees, either way
    scale: tuple[float, float] = (0.85, 1.15)
    aspect: float = 0.1  # relative, either way
    shear: float = 0.08
    shift: float = 0.06  # of the image side, either way


def pose_ink(masters: NDArray[np.uint8], pose: Pose, rng: Rng) -> Ink:
    """Apply random affine transforms to masters, uint8 (N, M, M); return ink (N, S, S)."""
    n: int = masters.shape[0]
    side: int = masters.shape[1]
    angle = np.deg2rad(rng.uniform(-pose.rotation, pose.rotation, n))
    zoom = side / IMAGE_SIZE / rng.uniform(*pose.scale, n)
    aspect: NDArray[np.float64] = 1 + rng.uniform(-pose.aspect, pose.aspect, n)
    shear = rng.uniform(-pose.shear, pose.shear, n)
    shift = rng.uniform(-pose.shift, pose.shift, (2, n)) * side
    cos: NDArray[np.float64] = np.cos(angle) * zoom
    sin: NDArray[np.float64] = np.sin(angle) * zoom
    rows, cols = _GRID - (IMAGE_SIZE - 1) / 2

    def column(values: NDArray[Any]) -> NDArray[np.float64]:
        return values[:, None, None]

    slanted = cols * column(aspect) + rows * column(shear)
    source_rows = column(cos) * rows + column(sin) * slanted + (side - 1) / 2 + column(shift[0])
    source_cols = column(cos) * slanted - column(sin) * rows + (side - 1) / 2 + column(shift[1])
    which = np.broadcast_to(np.arange(n)[:, None, None], source_rows.shape)
    coordinates = np.stack([which, source_rows, source_cols])
    values = masters.astype(np.float32) / 255
    ink: Ink = scipy.ndimage.map_coordinates(values, coordinates, order=1).astype(np.float32)
    return ink


def _blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blur each image of (N, S, S) or (N, S, S, 3) separately."""
    sigmas = (0.0, sigma, sigma) + (0.0,) * (image.ndim - 3)
    blurred: NDArray[np.float32] = scipy.ndimage.gaussian_filter(image, sigmas)
    return blurred


def _per_picture(rng: Rng, n: int, low: float, high: float) -> NDArray[np.float32]:
    return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)


def _colour(rng: Rng, n: int, rgb: tuple[float, float, float], spread: float) -> Images:
    """Draw one colour per image around `rgb`: (N, 1, 1, 3)."""
    drawn = np.asarray(rgb) + rng.uniform(-spread, spread, (n, 1, 1, 3))
    return np.clip(drawn, 0, 1).astype(np.float32)


def _noise(rng: Rng, ink: Ink, sigma: float, amount: float) -> Ink:
    """Draw zero-mean texture of strength `amount`; `sigma` is its grain in pixels."""
    grain = rng.standard_normal(ink.shape).astype(np.float32)
    if sigma:
        grain = _blur(grain, sigma)
        grain /= grain.std() + 1e-6
    return grain * np.float32(amount)


def _mix(background: Images, foreground: Images, ink: Ink) -> Images:
    alpha = ink[..., None]
    return background * (1 - alpha) + foreground * alpha


def _edges(ink: Ink, width: int = 3) -> Ink:
    """Return the contour of the ink."""
    size = (1, width, width)
    grown = scipy.ndimage.maximum_filter(ink, size)
    shrunk = scipy.ndimage.minimum_filter(ink, size)
    contour: Ink = grown - shrunk
    return contour


def _ramp(rng: Rng, n: int) -> Ink:
    """Draw a linear light gradient from -1 to 1 in a random direction: (N, S, S)."""
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    rows, cols = _CENTRED
    light: Ink = (np.cos(angle) * rows + np.sin(angle) * cols).astype(np.float32)
    return light / np.float32(np.sqrt(2))


def _finish(image: Images) -> Images:
    clipped: Images = np.clip(image, 0, 1).astype(np.float32)
    return clipped


def faded_photo(ink: Ink, rng: Rng) -> Images:
    """A low-contrast snapshot: soft focus, colour cast, vignette."""
    n = len(ink)
    wall = _colour(rng, n, (0.72, 0.66, 0.58), 0.12)
    paint = wall - _per_picture(rng, n, 0.16, 0.34)[..., None]
    soft = _blur(ink, 1.0)
    rows, cols = _CENTRED
    vignette = (1 - 0.22 * (rows**2 + cols**2))[None, ..., None]
    image = (_mix(wall, paint, soft) + 0.12 * _ramp(rng, n)[..., None]) * vignette
    return _finish(image + _noise(rng, ink, 0, 0.05)[..., None])


def chalk(ink: Ink, rng: Rng) -> Images:
    """The side of a chalk drawn over a smeared board, whose grain shows through."""
    n = len(ink)
    board = _colour(rng, n, (0.13, 0.24, 0.19), 0.04)
    smear = np.clip(_noise(rng, ink, 3.0, 0.06), -0.1, 0.2)[..., None]
    rows, cols = _GRID
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    grain = (np.sin((rows + cols) * 2 * np.pi / 4.2 + phase) > -0.1).astype(np.float32)
    crumbs = np.clip(0.75 + _noise(rng, ink, 0.6, 0.3), 0, 1)
    powder = _colour(rng, n, (0.9, 0.9, 0.84), 0.06)
    return _finish(_mix(board + smear, powder, ink * grain * crumbs))


def halftone(ink: Ink, rng: Rng) -> Images:
    """Contours in newspaper print: tone becomes dots of a coarse screen."""
    n = len(ink)
    phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 1))
    rows, cols = _GRID
    pitch = 2 * np.pi / _per_picture(rng, n, 3.0, 3.8)
    screen = np.cos((rows + cols) * pitch * 0.7071 + phase[0])
    screen = screen * np.cos((rows - cols) * pitch * 0.7071 + phase[1])
    tone = 0.22 + 0.5 * _blur(_edges(ink), 0.6)
    dots = 1 / (1 + np.exp(-9 * (tone * 2 - 1 + screen * 0.75)))
    paper = _colour(rng, n, (0.86, 0.84, 0.78), 0.04)
    printed = _colour(rng, n, (0.18, 0.17, 0.18), 0.05)
    return _finish(_mix(paper, printed, dots.astype(np.float32)))


def neon(ink: Ink, rng: Rng) -> Images:
    """Glowing tubes along the contour, at night."""
    n = len(ink)
    wall = _colour(rng, n, (0.1, 0.08, 0.12), 0.05) + _noise(rng, ink, 1.5, 0.03)[..., None]
    tube = _edges(ink)
    gas = _colour(rng, n, (0.6, 0.3, 0.6), 0.4)
    glow = gas * (0.8 * _blur(tube, 1.6) + 0.5 * tube)[..., None] + 0.3 * tube[..., None] ** 2
    return _finish(wall + glow + _noise(rng, ink, 0, 0.04)[..., None])


def scratchboard(ink: Ink, rng: Rng) -> Images:
    """Contours scratched white into black, on hatched ground."""
    n = len(ink)
    rows, cols = _GRID
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    pitch = _per_picture(rng, n, 4.8, 6.2)
    hatch = np.clip(np.sin((rows - cols) * 2 * np.pi / pitch + phase), 0, 1) ** 2 * (1 - ink)
    scratches = np.maximum(_edges(ink) * _per_picture(rng, n, 0.7, 1.0), 0.5 * hatch)
    ground = _colour(rng, n, (0.1, 0.1, 0.11), 0.04)
    image = _mix(ground, _colour(rng, n, (0.88, 0.85, 0.75), 0.08), scratches)
    return _finish((image + _noise(rng, ink, 0, 0.04)[..., None]).astype(np.float32))


def road_sign(ink: Ink, rng: Rng) -> Images:
    """Light contours on a coloured plate before a landscape, with glare."""
    n = len(ink)
    plates = np.array([(0.1, 0.3, 0.65), (0.72, 0.12, 0.14), (0.1, 0.45, 0.25), (0.85, 0.65, 0.1)])
    plate = plates[rng.integers(0, len(plates), n)][:, None, None, :].astype(np.float32)
    rows, cols = _CENTRED
    roundness = rng.choice([2.0, 4.0, 8.0], (n, 1, 1))
    radius = (np.abs(rows) ** roundness + np.abs(cols) ** roundness) ** (1 / roundness)
    inside = (1 / (1 + np.exp(18 * (radius - 0.97)))).astype(np.float32)
    scenery = _colour(rng, n, (0.45, 0.5, 0.42), 0.2) + _noise(rng, ink, 2.0, 0.12)[..., None]
    sign = _mix(plate, _colour(rng, n, (0.93, 0.93, 0.9), 0.06), _edges(ink))
    glare = np.clip(_ramp(rng, n), 0, 1) * _per_picture(rng, n, 0.0, 0.55)
    image = _mix(scenery, sign + glare[..., None], inside)
    return _finish(_blur(image, 0.5))


def blueprint(ink: Ink, rng: Rng) -> Images:
    """White contours on a blue sheet with a grid."""
    n = len(ink)
    sheet = _colour(rng, n, (0.1, 0.25, 0.55), 0.05)
    pitch, start = rng.integers(5, 8, (n, 1, 1)), rng.integers(0, 6, (2, n, 1, 1))
    rows, cols = _GRID
    grid = (((rows + start[0]) % pitch == 0) | ((cols + start[1]) % pitch == 0)) * 0.3
    lines = np.maximum(_edges(ink) * _per_picture(rng, n, 0.75, 1.0), grid.astype(np.float32))
    image = _mix(sheet, _colour(rng, n, (0.88, 0.93, 1.0), 0.04), lines)
    return _finish(image + _noise(rng, ink, 0, 0.03)[..., None])


def embossed(ink: Ink, rng: Rng) -> Images:
    """Relief in thick paper, seen by its shading only."""
    n = len(ink)
    height = _blur(ink, 0.9)
    slope_rows, slope_cols = np.gradient(height, axis=(1, 2))
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    shade = np.cos(angle) * slope_rows + np.sin(angle) * slope_cols
    paper = _colour(rng, n, (0.7, 0.66, 0.6), 0.08)
    light = (_per_picture(rng, n, 1.0, 1.7) * shade).astype(np.float32)
    return _finish(paper + light[..., None] + _noise(rng, ink, 0.5, 0.04)[..., None])


def embroidery(ink: Ink, rng: Rng) -> Images:
    """Contours cross-stitched in coloured thread on woven cloth."""
    n, stitch = len(ink), 2
    cells = IMAGE_SIZE // stitch
    coverage = _edges(ink).reshape(n, cells, stitch, cells, stitch).mean(axis=(2, 4))
    stitched = (coverage > 0.5).astype(np.float32)
    thread = _colour(rng, n, (0.6, 0.15, 0.2), 0.25)
    cloth = _colour(rng, n, (0.82, 0.78, 0.66), 0.08)
    shade = rng.uniform(0.65, 1.1, (n, cells, cells)).astype(np.float32)
    weave = np.tile(np.array([[1.0, 0.82], [0.82, 1.0]], np.float32), (cells, cells))[None]
    full = stitched.repeat(stitch, 1).repeat(stitch, 2)
    thread_shade = shade.repeat(stitch, 1).repeat(stitch, 2)
    return _finish(_mix(cloth * weave[..., None], thread * thread_shade[..., None], full))


def outline(ink: Ink, rng: Rng) -> Images:
    """Thin, broken contour drawn with a pen on textured paper."""
    n = len(ink)
    contour = _edges(ink) * np.clip(0.8 + _noise(rng, ink, 1.2, 0.3), 0, 1)
    paper = _colour(rng, n, (0.9, 0.87, 0.8), 0.06) + _noise(rng, ink, 1.0, 0.05)[..., None]
    pen = _colour(rng, n, (0.2, 0.2, 0.35), 0.15)
    return _finish(_mix(paper, pen, np.clip(contour, 0, 1)))
