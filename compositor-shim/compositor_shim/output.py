"""wl_output and xdg-output: the one screen."""

from __future__ import annotations

from dataclasses import dataclass

from pywayland.protocol.wayland import WlOutput
from pywayland.protocol.xdg_output_unstable_v1 import ZxdgOutputManagerV1, ZxdgOutputV1

from compositor_shim.resource import Resource

NAME = "SHIM-1"
REFRESH_HZ = 60


@dataclass(frozen=True)
class Screen:
    """``size`` in logical pixels; the picture has ``scale`` times as many each way."""

    size: tuple[int, int]
    scale: int = 1

    @property
    def mode(self) -> tuple[int, int]:
        return (self.size[0] * self.scale, self.size[1] * self.scale)


class Output(Resource):
    WIRE = WlOutput.resource_class
    screen: Screen

    def greet(self) -> None:
        width, height = self.screen.mode
        # 96 dots an inch.
        millimetres = (round(width * 25.4 / 96), round(height * 25.4 / 96))
        self.send("geometry", 0, 0, *millimetres, WlOutput.subpixel.unknown.value, "waylend", "shim", 0)
        self.send("mode", WlOutput.mode.current.value, width, height, REFRESH_HZ * 1000)
        self.send("scale", self.screen.scale)
        self.send("name", NAME)
        self.send("description", "compositor-shim's screen")
        self.send("done")


class XdgOutputManager(Resource):
    WIRE = ZxdgOutputManagerV1.resource_class

    def get_xdg_output(self, object_id: int, output: Output) -> None:
        xdg_output = XdgOutput(self, object_id)
        xdg_output.send("logical_position", 0, 0)
        xdg_output.send("logical_size", *output.screen.size)
        xdg_output.send("name", NAME)
        xdg_output.send("description", "compositor-shim's screen")
        if xdg_output.version >= 3:
            output.send("done")
        else:
            xdg_output.send("done")


class XdgOutput(Resource):
    WIRE = ZxdgOutputV1.resource_class
