"""The ways in which applications make pixels of a picture's file, other than the bundle's own."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..task import Array
from .hypotheses import Expected

if TYPE_CHECKING:
    from PIL.Image import Image

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
MOST_PIXELS = 1 << 24  # of a picture while it is resized
UNREADABLE = (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError, MemoryError, ArithmeticError)
BARS = (0, 114, 128)  # what is put beside a picture that keeps its proportion


@dataclasses.dataclass(frozen=True)
class _Way:
    """fit: "crop" (shorter side, then the middle), "stretch", "corner" (crop from there), "cut" (no resize at all), or
    the grey level of bars; is_plain: pixels are not averaged when a picture shrinks."""

    fit: str | int
    filter: str
    is_plain: bool = False

    def words(self, own: _Way) -> str:
        how = f"{self.filter}{', without averaging where it shrinks (as OpenCV and GPUs do)' if self.is_plain else ''}"
        parts = [] if (self.filter, self.is_plain) == (own.filter, own.is_plain) else [f"{how} instead of {own.filter}"]
        fits = {
            "stretch": "stretched", "crop": "resized in proportion and cropped from the middle",
            "corner": "cropped from the corner", "cut": "cropped without a resize",
        }  # fmt: skip
        if self.fit != own.fit:
            fit = fits.get(str(self.fit), f"shrunk in proportion between bars of grey {self.fit}")
            parts.append(f"{fit} instead of {fits[str(own.fit)]}")
        return "wrong resize: " + "; ".join(parts)


def others(raws: Sequence[bytes], prepare: dict[str, Any], shape: tuple[int, ...]) -> Iterator[Expected]:
    """What other ways make of the files, each (n, height, width, channels) like the expected arrays' shape.

    Raises ImportError without Pillow; UNREADABLE for files and settings that cannot be used.
    """
    from PIL import ImageOps

    pictures = []
    for raw in raws:
        opened = _opened(raw)
        if prepare.get("orientation") == "apply":
            opened = ImageOps.exif_transpose(opened)
        pictures.append(opened.convert(prepare["mode"]))
    own = _Way("stretch" if prepare.get("stretch") else "crop" if prepare.get("resize") else "cut", prepare["filter"])
    for way in _ways(own):
        rows = [_made(picture, way, prepare, shape[2], shape[1]) for picture in pictures]
        if all(row is not None and row.shape == shape[1:] for row in rows):
            yield Expected(np.stack([row for row in rows if row is not None]), way.words(own))


def _opened(raw: bytes) -> Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened: Image.Image = Image.open(io.BytesIO(raw))
            opened.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(str(error)) from error
    return opened


def _ways(own: _Way) -> Iterator[_Way]:
    fits: tuple[str | int, ...] = ("crop", "stretch", "corner", "cut", *BARS)
    for fit in sorted(fits, key=lambda fit: fit != own.fit):
        for name in sorted(FILTERS, key=lambda name: name != own.filter):
            for is_plain in (False, True):
                way = _Way(fit, name, is_plain)
                if way != own and not (is_plain and name != "bilinear") and not (fit == "cut" and name != own.filter):
                    yield way


def _made(picture: Image, way: _Way, prepare: dict[str, Any], width: int, height: int) -> Array | None:
    if way.fit == "cut":
        made = _pixels(picture)
    elif way.fit == "stretch":
        made = _resized(picture, (width, height), way)
    elif isinstance(way.fit, int):
        share = min(width / picture.width, height / picture.height)
        size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
        inner = _resized(picture, size, way)
        made = np.full((height, width, inner.shape[2]), way.fit, np.uint8)
        top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
        made[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    else:
        shorter = int(prepare.get("resize") or min(width, height))
        least = min(picture.size)
        made = _resized(
            picture, (max(1, shorter * picture.width // least), max(1, shorter * picture.height // least)), way
        )
    if made.shape[0] < height or made.shape[1] < width:
        return None
    top, left = round((made.shape[0] - height) / 2), round((made.shape[1] - width) / 2)
    if way.fit == "corner":
        top = left = 0
    return made[top : top + height, left : left + width]


def _resized(picture: Image, size: tuple[int, int], way: _Way) -> Array:
    from PIL import Image

    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"a picture of {picture.width} x {picture.height} would become one of {size[0]} x {size[1]}")
    if not way.is_plain:
        return _pixels(picture.resize(size, Image.Resampling[way.filter.upper()]))
    values = _pixels(picture).astype(np.float64)
    for axis, count in ((1, size[0]), (0, size[1])):
        values = _interpolated(values, axis, count)
    return np.rint(values).astype(np.uint8)


def _interpolated(values: Array, axis: int, count: int) -> Array:
    """Between the two nearest of `axis`, pixel centres at halves."""
    old = values.shape[axis]
    place = np.clip((np.arange(count) + 0.5) * old / count - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    share = (place - low).reshape([-1 if own == axis else 1 for own in range(values.ndim)])
    high = np.minimum(low + 1, old - 1)
    return np.asarray(values.take(low, axis) * (1 - share) + values.take(high, axis) * share)


def _pixels(picture: Image) -> Array:
    made = np.asarray(picture, np.uint8)
    return made.reshape(*made.shape[:2], -1)
