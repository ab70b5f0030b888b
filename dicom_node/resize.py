"""Images drawn smaller: to the squares that networks see, and to the picture that a heatmap is drawn over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


LARGEST = 1024  # pixels: squares are drawn from an image that is shrunk to this once, not from the whole each


def square(image: NDArray[np.float32], side: int, resolution: int = 0) -> NDArray[np.float32]:
    """The image drawn to a square, shape (side, side), by way of one of `resolution` pixels where that is not 0.

    Bilinear with antialias, as torch's ``interpolate`` to 1e-5 where the image has no more than `LARGEST` pixels on its
    longer side, and to a grey level of 255 where it has. The aspect is not kept, as in the papers.
    """
    drawn = Image.fromarray(shrunk(np.asarray(image, dtype=np.float32), LARGEST))
    for size in (resolution, side) if resolution else (side,):
        drawn = drawn.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(drawn)


def shrunk(image: NDArray[np.float32], longest: int) -> NDArray[np.float32]:
    """The image with at most `longest` pixels on its longer side, as `dicom_node.picture` would shrink it."""
    rows, columns = image.shape
    longer = max(rows, columns)
    if longer <= longest:
        return image
    height, width = (max(1, round(side * longest / longer)) for side in (rows, columns))
    whole = min(rows // height, columns // width)
    try:
        if whole > 1 and rows % whole == columns % whole == 0:  # the mean of whole cells takes a tenth of the time
            smaller = (columns // whole, rows // whole)
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA).astype(np.float32)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError from error
        raise


def picture(image: NDArray[np.float32], longest: int) -> NDArray[np.uint8]:
    """The image as bytes, at most `longest` pixels on its longer side.

    Parameters
    ----------
    image
        Shape (rows, columns), in [0, 1].
    """
    image = shrunk(image, longest)
    return np.rint(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
