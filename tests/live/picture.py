"""Screenshots, and what a test can say about one. A check here has to fail for an empty window."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

#: Left, top, right, bottom; half-open, in pixels.
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    image: Image.Image

    @classmethod
    def decode(cls, encoded: bytes) -> Picture:
        return cls(Image.open(io.BytesIO(encoded)).convert("RGB"))

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    def part(self, box: Box) -> Picture:
        return Picture(self.image.crop(box))

    def pixel(self, x: int, y: int) -> Colour:
        red, green, blue = self.image.getpixel((x, y))  # type: ignore[misc]
        return (int(red), int(green), int(blue))

    def colours(self) -> dict[Colour, int]:
        """Colour -> how many pixels have it."""
        counts = self.image.getcolors(self.image.width * self.image.height)
        assert counts is not None
        return {colour: count for count, colour in counts}  # type: ignore[misc]

    def share_of(self, colour: Colour, tolerance: int = 0) -> float:
        """The part of all pixels, 0 to 1, whose channels are all within ``tolerance`` of ``colour``."""
        near = sum(
            count
            for found, count in self.colours().items()
            if all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))
        )
        return near / (self.image.width * self.image.height)

    def difference(self, other: Picture) -> float:
        """The part of all pixels, 0 to 1, that differ. Pictures of another size differ wholly."""
        if self.size != other.size:
            return 1.0
        red, green, blue = ImageChops.difference(self.image, other.image).split()
        same = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()[0]
        return 1 - same / (self.image.width * self.image.height)

    def changed_box(self, other: Picture) -> Box | None:
        """The smallest box that holds every difference to ``other``; None if there is none."""
        return ImageChops.difference(self.image, other.image).getbbox()

    def save(self, path: Path) -> None:
        self.image.save(path)


def keep(picture: Picture, name: str) -> None:
    """Saves the picture where WAYLEND_LIVE_PICTURES says, so that a person can look at it."""
    folder = os.environ.get("WAYLEND_LIVE_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture.save(Path(folder) / f"{name}.png")


def has_colours(*wanted: tuple[Colour, float]) -> Callable[[Picture], bool]:
    """A check: each colour covers at least its share of the picture."""
    return lambda picture: all(picture.share_of(colour, 2) >= share for colour, share in wanted)
