"""Pictures: uint8 arrays (height, width, channels), decoded and resized by Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from ..config import Allowed, Choices, Conflict, Section
from ..errors import MissingDependency
from ..task import Array
from .items import Content, Item, read_files, unfit

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCE = "pictures: a folder with one sub-folder per class, or a CSV file with the columns file, labels' and groups'."
DISTRIBUTIONS = ("pillow", "numpy")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # Exif's tag
# What loses nothing: a grey picture has three equal channels, a palette's entries are colours.
WITHOUT_LOSS = {"RGB": ("RGB", "L", "1", "P"), "L": ("L", "1")}
EIGHT_BITS = ("RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "LAB")  # Pillow clips deeper ones

Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
Size = Annotated[tuple[Pixels, Pixels], Field(strict=False), Allowed("[width, height] in pixels")]


class Prepare(Section):
    mode: Annotated[str, Choices(("RGB", "L"))] = Field(default="RGB", description="Colours, or grey as one channel.")
    resize: Pixels | None = Field(
        default=None, description="The shorter side becomes so many pixels, the longer one in proportion."
    )
    stretch: Size | None = Field(default=None, description="Instead: both sides, whatever the proportion was.")
    crop: Size | None = Field(default=None, description="Then this much of the middle.")
    filter: Annotated[str, Choices(("bicubic", "bilinear", "nearest", "lanczos"))] = Field(
        default="bicubic", description="How pixels are computed; all but nearest average when they shrink a picture."
    )
    orientation: Annotated[str, Choices(("apply", "ignore"))] | None = Field(
        default=None, description="What to do where a camera noted that it was turned; absent: such a file is refused."
    )
    convert: bool = Field(
        default=False, description="Take pictures that lose something on the way to mode: transparency, CMYK, colours."
    )

    def conflicts(self) -> Iterator[Conflict]:
        if self.resize and self.stretch:
            yield Conflict(("resize", "stretch"), "both", "one of the two", "remove one")


def read(source: Path, labels: str | None, groups: str | None, part: str | None = None) -> list[Item]:
    return read_files(source, labels, groups, part, SUFFIXES)


def input_conflicts(inputs: Sequence[str]) -> Iterator[Conflict]:
    if len(inputs) != 1:
        yield Conflict(("inputs",), f"{len(inputs)} names", "one: a picture is one array", "leave one")


def files(prepare: Prepare, folder: Path) -> list[Path]:  # noqa: ARG001
    return []


def decoder(prepare: Prepare, inputs: Sequence[str], folder: Path) -> Callable[[Content], tuple[Array, ...]]:  # noqa: ARG001
    """Of a picture its pixels, uint8 (h, w, 3) or, for mode L, (h, w, 1)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingDependency(
            "pictures need 'pillow', which is not installed: pip install 'edgeopt[tasks]'"
        ) from error

    def decode(content: Content) -> tuple[Array, ...]:
        try:
            with Image.open(content) as opened:
                opened.load()
                turned = opened.getexif().get(ORIENTATION, 1) != 1
                picture: Image.Image = ImageOps.exif_transpose(opened) if prepare.orientation == "apply" else opened
        except Exception as error:  # a decoder may raise anything on what it was not made for
            raise unfit(f"no readable picture ({error})", "what Pillow reads", "save it again, or remove it") from error
        if turned and prepare.orientation is None:
            allowed = "upright pictures, as orientation is absent"
            raise unfit("a note of the camera that it was turned", allowed, "set orientation = 'apply' or 'ignore'")
        return (_pixels(picture, prepare),)

    return decode


def _pixels(picture: Image, prepare: Prepare) -> Array:
    mode = f"{picture.mode}, transparent" if "transparency" in picture.info else picture.mode
    allowed = WITHOUT_LOSS[prepare.mode]
    if mode not in allowed and not (prepare.convert and picture.mode in EIGHT_BITS):
        mend = "save it so, or set convert = true" if picture.mode in EIGHT_BITS else "save it with 8 bits a channel"
        raise unfit(f"a picture of mode {mode}", ", ".join(allowed), mend)
    picture = _resized(picture.convert(prepare.mode), prepare)
    if prepare.crop is not None:
        picture = _cropped(picture, *prepare.crop)
    pixels: Array = np.asarray(picture, np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)


def _resized(picture: Image, prepare: Prepare) -> Image:
    from PIL import Image

    how: Any = Image.Resampling[prepare.filter.upper()]
    if prepare.stretch is not None:
        return picture.resize(prepare.stretch, how)
    if prepare.resize is None:
        return picture
    shorter = min(picture.size)
    width, height = (max(1, prepare.resize * side // shorter) for side in picture.size)
    return picture.resize((width, height), how)


def _cropped(picture: Image, width: int, height: int) -> Image:
    if picture.width < width or picture.height < height:
        found = f"{picture.width}x{picture.height} pixels"
        raise unfit(found, f"at least {width}x{height} for crop", "set resize, or lower crop")
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
