"""The heatmap as pixels: the X-ray with what the networks looked at over it.

It is drawn from the archived maps; the network does not run again. Nothing that identifies the patient is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dicom_node.activation import STRONG, grid, mean_activation, shares, strongest_point
from dicom_node.layout import BACKGROUND, layout
from dicom_node.lettering import drawn
from dicom_node.resize import shrunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicom_node.bundle import Manifest
    from dicom_node.domain import Prediction
    from dicom_node.layout import Box, Layout

    Bytes = NDArray[np.uint8]

_STRIP = 64  # rows
OPACITY = 0.6  # of the overlay at full activation: the X-ray stays legible below
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


def _blends() -> NDArray[np.uint32]:
    """RGB and a spare byte by activation x 256 + grey: colours over grey, with an opacity that grows from nothing.

    Viridis is perceptually even, and unlike the greys of bone and heart at its strong end, where inferno ends in their
    white.
    """
    steps = np.arange(256, dtype=np.uint8)
    colours = cv2.applyColorMap(steps.reshape(256, 1), cv2.COLORMAP_VIRIDIS)[:, None, 0, ::-1].astype(np.float64)
    opacity = OPACITY * steps[:, None, None] / 255
    table = np.zeros((256, 256, 4), dtype=np.uint8)
    table[..., :3] = np.rint(steps[None, :, None] * (1 - opacity) + colours * opacity)
    return table.view(np.uint32).reshape(-1)


_BLENDS = _blends()


def draw_heatmap(pixels: NDArray[np.float32], prediction: Prediction, manifest: Manifest, *, size: int) -> Bytes:
    """The picture, RGB, uint8, shape (h, w, 3).

    Parameters
    ----------
    pixels
        The X-ray as `dicom_node.pixels` renders it: shape (rows, columns), in [0, 1], MONOCHROME2.
    size
        Longer side of the X-ray in the picture, in pixels; text, colour bar and the members' maps come on top.
    """
    rows, columns = pixels.shape
    plan = layout(rows, columns, prediction, manifest, size=size)
    canvas = np.empty((plan.height, plan.width, 3), dtype=np.uint8)
    canvas[:] = np.tile(np.array(BACKGROUND, np.uint8), (1, plan.width, 1))
    for (top, left, height, width), colour in plan.fills:
        if height and width:
            cv2.rectangle(canvas, (left, top), (left + width - 1, top + height - 1), colour, cv2.FILLED)
    xray = _grey(pixels, size, plan.xray[2:])
    if prediction.maps:
        heat = mean_activation(prediction.maps, *grid(*xray.shape), shares(prediction.maps, manifest))
        fine = _resized(_bytes(heat), xray.shape, cv2.INTER_CUBIC)
        _blend(canvas, plan.xray, xray, fine)
        if heat.any():
            _outline(_part(canvas, plan.xray), fine, heat, max(1, round(size / 512)))
    else:
        _part(canvas, plan.xray)[:] = xray[..., None]
    _panels(canvas, plan, xray, prediction)
    if plan.bar is not None:
        high = np.linspace(255, 0, plan.bar[2]).round().astype(np.uint8)[:, None].repeat(plan.bar[3], axis=1)
        _blend(canvas, plan.bar, np.full_like(high, 128), high)  # as they look over mid-grey, 1 on top
    for line in plan.lines:
        letters = drawn(line.text, line.size, line.colour, line.background)
        place = canvas[line.top : line.top + letters.shape[0], line.left : line.left + letters.shape[1]]
        place[:] = letters[: place.shape[0], : place.shape[1]]
    return canvas


def _grey(pixels: NDArray[np.float32], size: int, shape: tuple[int, int]) -> Bytes:
    """The X-ray at its size in the picture; what is no number is black."""
    return _resized(_bytes(shrunk(pixels, size)), shape, cv2.INTER_CUBIC)


def _bytes(values: NDArray[np.float32]) -> Bytes:
    """[0, 1] as 0 to 255."""
    return np.asarray(cv2.convertScaleAbs(np.clip(values, 0, 1), alpha=255), np.uint8)


def _resized(image: Bytes, shape: tuple[int, ...], how: int) -> Bytes:
    return image if image.shape == shape else np.asarray(cv2.resize(image, shape[::-1], interpolation=how), np.uint8)


def _part(canvas: Bytes, box: Box) -> Bytes:
    top, left, height, width = box
    return canvas[top : top + height, left : left + width]


def _blend(canvas: Bytes, box: Box, grey: Bytes, heat: Bytes) -> None:
    """Draw the activation over the grey, a strip after the other, which stays in the processor's cache."""
    part = _part(canvas, box)
    for top in range(0, len(grey), _STRIP):
        strip = slice(top, top + _STRIP)
        both = cv2.merge((grey[strip], heat[strip])).view("<u2")[..., 0]
        rgb = _BLENDS.take(both).view(np.uint8).reshape(*both.shape, 4)
        cv2.cvtColor(rgb, cv2.COLOR_RGBA2RGB, dst=part[strip])


def _outline(part: Bytes, fine: Bytes, heat: NDArray[np.float32], thickness: int) -> None:
    """Draw the contour of the strongest region: white on black, to be seen on lung and on bone."""
    strong = cv2.threshold(fine, round(255 * STRONG) - 1, 255, cv2.THRESH_BINARY)[1]
    contours, _ = cv2.findContours(strong, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    row, column = ((at + 0.5) * fine.shape[axis] / heat.shape[axis] for axis, at in enumerate(strongest_point(heat)))
    around = max(contours, key=lambda contour: cv2.pointPolygonTest(contour, (column, row), True), default=None)
    if around is not None:
        simple = [cv2.approxPolyDP(around, 0.7, True)]  # of fewer points, as each costs time
        cv2.drawContours(part, simple, -1, _BLACK, thickness + (2 if thickness > 1 else 1), cv2.LINE_AA)
        cv2.drawContours(part, simple, -1, _WHITE, thickness, cv2.LINE_AA)


def _panels(canvas: Bytes, plan: Layout, xray: Bytes, prediction: Prediction) -> None:
    """Each member's own map over the X-ray."""
    if not plan.panels:
        return
    height, width = plan.panels[0].box[2:]
    # To twice the size first: the mean of whole cells takes a tenth of the time.
    small = _resized(_resized(xray, (2 * height, 2 * width), cv2.INTER_LINEAR), (height, width), cv2.INTER_AREA)
    for panel in plan.panels:
        heat = mean_activation((prediction.maps[panel.of],), *small.shape)
        _blend(canvas, panel.box, small, _bytes(heat))
