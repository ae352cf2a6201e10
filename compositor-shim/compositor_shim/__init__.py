"""compositor-shim: a headless Wayland compositor for tests, and the API that drives it.

>>> with Shim(size=(800, 600)) as shim:                                         # doctest: +SKIP
...     subprocess.Popen(["foot"], env={**os.environ, **shim.environ})
...     window = shim.wait_for_window(app_id="foot")
...     shim.type_text("echo hello\\n")
...     shim.screenshot(window).save("foot.png")
"""

from compositor_shim.api import Shim, ShimError, Window

__all__ = ["Shim", "ShimError", "Window"]
