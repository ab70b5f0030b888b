"""Lines of text for pictures: wrapped to a width, and drawn once where they are drawn often."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Colour = tuple[int, int, int]

ELLIPSIS = "\u2026"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text on a plain background; `left` and `top` are those of its letters' box, in pixels."""

    text: str
    size: int
    colour: Colour
    background: Colour
    left: int
    top: int


@lru_cache(maxsize=256)
def wrapped(text: str, size: int, width: int, most: int | None = None) -> tuple[str, ...]:
    """`text` in lines of at most `width` pixels, broken between words; a word too long by itself is cut.

    Parameters
    ----------
    most
        Number of lines after which the text is cut.
    """
    if text_width(text, size) <= width:
        return (text,) if text else ()
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, size, width))
    if most is not None and len(lines) > most:
        lines[most - 1 :] = [_cut(f"{lines[most - 1]} {lines[most]}", size, width)]
    return tuple(lines)


def _cut(text: str, size: int, width: int) -> str:
    """As much of the text as fits, with an ellipsis for the rest."""
    if text_width(text, size) <= width:
        return text
    kept = bisect(range(1, len(text)), width, key=lambda kept: text_width(f"{text[:kept]}{ELLIPSIS}", size))
    return f"{text[:kept]}{ELLIPSIS}"


@lru_cache(maxsize=512)
def text_width(text: str, size: int) -> int:
    """Width of a line of text, in pixels."""
    return ceil(_font(size).getlength(text))


def text_height(size: int) -> int:
    """Height of the box that holds every letter, in pixels."""
    return sum(_font(size).getmetrics())


@lru_cache(maxsize=64)  # the banner, the captions and the titles are the same on every picture
def drawn(text: str, size: int, colour: Colour, background: Colour) -> NDArray[np.uint8]:
    """The line as pixels: RGB, uint8, `text_height` high and as wide as the text."""
    mask = Image.new("L", (text_width(text, size), text_height(size)))
    ImageDraw.Draw(mask).text((0, 0), text, 255, _font(size))
    letters = _mixed(colour, background).take(np.asarray(mask), axis=0)
    letters.setflags(write=False)
    return letters


@lru_cache(maxsize=32)
def _mixed(colour: Colour, background: Colour) -> NDArray[np.uint8]:
    """From background to colour in 256 steps."""
    share = np.arange(256)[:, None] / 255
    mixed: NDArray[np.uint8] = np.rint((1 - share) * np.array(background) + share * np.array(colour)).astype(np.uint8)
    return mixed


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))  # FreeType wherever Pillow has it
