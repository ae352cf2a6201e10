"""From surfaces to one picture: what a screenshot shows. Pixel-exact: nothing is filtered where nothing is scaled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image, ImageChops

from compositor_shim.shm import Picture
from compositor_shim.surface import Rectangle, State, Surface

# wl_output.transform: how the buffer's content was turned; this turns it back. Counter-clockwise, flipped about the vertical.
_UNDO = {
    1: (Image.Transpose.ROTATE_270,),
    2: (Image.Transpose.ROTATE_180,),
    3: (Image.Transpose.ROTATE_90,),
    4: (Image.Transpose.FLIP_LEFT_RIGHT,),
    5: (Image.Transpose.ROTATE_270, Image.Transpose.FLIP_LEFT_RIGHT),
    6: (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT),
    7: (Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT),
}


class Layer(NamedTuple):
    """One surface's pixels as they were: pictures and states don't change, so a list of these is a whole screen, kept cheaply."""

    picture: Picture
    state: State
    size: tuple[int, int]
    left: float
    top: float


def layers(surface: Surface, x: float, y: float) -> list[Layer]:
    """A surface and its subsurfaces, bottom to top."""
    return [
        Layer(part.picture, part.current, part.size(), left, top)
        for part, left, top in surface.tree(x, y)
        if part.picture is not None
    ]


def paint(screen: Image.Image, shown: Iterable[Layer], scale: int) -> None:
    """Puts them on ``screen`` (RGB), whose pixels are ``scale`` to a logical one."""
    for picture, state, (width, height), left, top in shown:
        if width and height:
            size = (width * scale, height * scale)
            _blend(screen, fitted(picture, state, size), (round(left * scale), round(top * scale)))


def fitted(picture: Picture, state: State, size: tuple[int, int]) -> Picture:
    """The picture turned, cropped and scaled as the surface's state says, to ``size``."""
    return Picture(
        _fit(picture.colours, state, size), None if picture.alpha is None else _fit(picture.alpha, state, size)
    )


def _fit(image: Image.Image, state: State, size: tuple[int, int]) -> Image.Image:
    for step in _UNDO.get(state.transform, ()):
        image = image.transpose(step)
    box: Rectangle | None = None
    if state.source is not None:
        x, y, width, height = (value * state.scale for value in state.source)
        box = (x, y, x + width, y + height)
    if image.size == size and (box is None or box == (0, 0, *size)):
        return image
    whole = box is None or all(value == int(value) for value in box)
    if box is not None and whole and (int(box[2] - box[0]), int(box[3] - box[1])) == size:
        return image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
    source = box or (0, 0, *image.size)
    # Whole multiples stay sharp; anything else is smoothed.
    multiples = all(size[n] % (source[n + 2] - source[n]) == 0 for n in (0, 1))
    return image.resize(size, Image.Resampling.NEAREST if multiples else Image.Resampling.BILINEAR, box=box)


def _blend(screen: Image.Image, picture: Picture, at: tuple[int, int]) -> None:
    if picture.alpha is None:
        screen.paste(picture.colours, at)
        return
    left, top = at
    box = (left, top, left + picture.size[0], top + picture.size[1])
    below = screen.crop(box)
    through = ImageChops.invert(picture.alpha)
    # Premultiplied: what is above, plus what shines through from below.
    dimmed = ImageChops.multiply(below, Image.merge("RGB", (through, through, through)))
    screen.paste(ImageChops.add(dimmed, picture.colours), at)
