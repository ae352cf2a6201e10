"""A client that gives one surface two roles, which the protocol forbids, and ends well all the same."""

from typing import Any

from pywayland.client import Display  # type: ignore[attr-defined]
from pywayland.protocol.wayland import WlCompositor, WlSubcompositor

with Display() as display:
    registry = display.get_registry()
    found: dict[str, Any] = {}
    kinds: dict[str, Any] = {"wl_compositor": WlCompositor, "wl_subcompositor": WlSubcompositor}

    def on_global(registry: Any, name: int, interface: str, _version: int) -> None:
        if interface in kinds:
            found[interface] = registry.bind(name, kinds[interface], 1)

    registry.dispatcher["global"] = on_global
    display.roundtrip()
    surface, parent = (found["wl_compositor"].create_surface() for _ in range(2))
    roles = [found["wl_subcompositor"].get_subsurface(surface, parent) for _ in range(2)]
    display.roundtrip()
