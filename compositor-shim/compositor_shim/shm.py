"""wl_shm and other ways to have pixels, read without ever mapping a client's file.

A client may cut its pool short at any moment, and the file may be served by a process that takes its time: a mapping of
it could be a SIGBUS or a stuck thread. ``preadv`` gives a short count instead.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from PIL import Image
from pywayland.protocol.single_pixel_buffer_v1 import WpSinglePixelBufferManagerV1
from pywayland.protocol.wayland import WlBuffer, WlShm, WlShmPool

from compositor_shim.resource import Connection, Resource

ERROR = WlShm.error
# wl_shm's name -> (Pillow's raw mode, whether it has alpha); little-endian, alpha is premultiplied.
FORMATS = {
    WlShm.format.argb8888.value: ("BGRA", True),
    WlShm.format.xrgb8888.value: ("BGRX", False),
    WlShm.format.abgr8888.value: ("RGBA", True),
    WlShm.format.xbgr8888.value: ("RGBX", False),
}


@dataclass
class Picture:
    """Pixels that were copied out of a buffer: colours premultiplied by alpha, and the alpha, or None where all is opaque."""

    colours: Image.Image
    alpha: Image.Image | None

    @property
    def size(self) -> tuple[int, int]:
        return self.colours.size


class Shm(Resource):
    WIRE = WlShm.resource_class

    def announce_formats(self) -> None:
        for number in FORMATS:
            self.send("format", number)

    def create_pool(self, object_id: int, fd: int, size_bytes: int) -> None:
        status = os.fstat(fd)
        if size_bytes <= 0:
            os.close(fd)
            raise self.violate(ERROR.invalid_stride.value, f"a pool of {size_bytes} bytes")
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise self.violate(ERROR.invalid_fd.value, "the pool's fd is no file that can be mapped")
        Pool(self, object_id, PoolFile(fd, size_bytes))


class PoolFile:
    """A client's file, open until neither pool nor buffers need it. ``shm``'s errors are for those who ask wrongly."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self._users = 1

    def retain(self) -> PoolFile:
        self._users += 1
        return self

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self.fd)

    def read(self, offset: int, size_bytes: int) -> bytearray | None:
        """The bytes, or None if the file is shorter than the client said."""
        content = bytearray(size_bytes)
        view = memoryview(content)
        while view:
            count = os.preadv(self.fd, [view], offset + size_bytes - len(view))
            if not count:
                return None
            view = view[count:]
        return content


class Pool(Resource):
    WIRE = WlShmPool.resource_class

    def __init__(self, parent: Resource, object_id: int, file: PoolFile) -> None:
        super().__init__(parent, object_id)
        self.file = file

    def create_buffer(self, object_id: int, offset: int, width: int, height: int, stride: int, format_: int) -> None:
        if format_ not in FORMATS:
            raise self.violate(ERROR.invalid_format.value, f"format {format_:#x} was not announced")
        if width <= 0 or height <= 0 or offset < 0 or stride < width * 4 or stride % 4:
            raise self.violate(
                ERROR.invalid_stride.value, f"a buffer of {width}x{height}, stride {stride}, at {offset}"
            )
        if offset + stride * height > self.file.size_bytes:
            raise self.violate(
                ERROR.invalid_stride.value,
                f"a buffer of {stride} x {height} bytes at {offset} in a pool of {self.file.size_bytes}",
            )
        ShmBuffer(self, object_id, self.file.retain(), offset, (width, height), stride, format_)

    def resize(self, size_bytes: int) -> None:
        if size_bytes < self.file.size_bytes:
            raise self.violate(ERROR.invalid_fd.value, "a pool can't shrink")
        self.file.size_bytes = size_bytes

    def gone(self) -> None:
        self.file.release()


class Buffer(Resource):
    """A wl_buffer of any kind."""

    WIRE = WlBuffer.resource_class
    size: tuple[int, int]

    def copy(self) -> Picture:
        """The pixels as they are now."""
        raise NotImplementedError


class ShmBuffer(Buffer):
    def __init__(
        self,
        parent: Resource,
        object_id: int,
        file: PoolFile,
        offset: int,
        size: tuple[int, int],
        stride: int,
        format_: int,
    ) -> None:
        super().__init__(parent, object_id)
        self.file = file
        self.offset = offset
        self.size = size
        self.stride = stride
        self.format = format_

    def copy(self) -> Picture:
        """Raises ProtocolViolation when the file is shorter than the pool (wl_shm.error.invalid_fd: can't be accessed)."""
        width, height = self.size
        content = self.file.read(self.offset, self.stride * (height - 1) + width * 4)
        if content is None:
            raise self.violate(ERROR.invalid_fd.value, "the pool's file was cut short")
        content += bytes(self.stride * height - len(content))
        raw_mode, has_alpha = FORMATS[self.format]
        if not has_alpha:
            return Picture(Image.frombuffer("RGB", self.size, bytes(content), "raw", raw_mode, self.stride, 1), None)
        picture = Image.frombuffer("RGBA", self.size, bytes(content), "raw", raw_mode, self.stride, 1)
        alpha = picture.getchannel("A")
        return Picture(picture.convert("RGB"), None if alpha.getextrema() == (255, 255) else alpha)

    def gone(self) -> None:
        self.file.release()


class SinglePixelManager(Resource):
    WIRE = WpSinglePixelBufferManagerV1.resource_class

    def create_u32_rgba_buffer(self, object_id: int, red: int, green: int, blue: int, alpha: int) -> None:
        SinglePixel(self, object_id, (red, green, blue, alpha))


class SinglePixel(Buffer):
    """One pixel, its channels premultiplied, 0 .. 2**32 - 1."""

    size = (1, 1)

    def __init__(self, parent: Resource | Connection, object_id: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__(parent, object_id)
        self.channels = tuple(channel >> 24 for channel in channels)

    def copy(self) -> Picture:
        alpha = self.channels[3]
        colours = Image.new("RGB", (1, 1), self.channels[:3])
        return Picture(colours, None if alpha == 255 else Image.new("L", (1, 1), alpha))
