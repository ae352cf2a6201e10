"""Shows an X11 window of one colour on the X server that the argument names; prints `shown` once it is mapped."""

from __future__ import annotations

import sys
import time

from Xlib import X
from Xlib.display import Display


def main() -> None:
    display = Display(sys.argv[1])
    screen = display.screen()
    window = screen.root.create_window(
        50, 50, 400, 300, 0, screen.root_depth, background_pixel=0xC8285A, event_mask=X.ExposureMask
    )
    window.map()
    while display.next_event().type != X.Expose:
        pass
    print("shown", flush=True)
    time.sleep(1000)


if __name__ == "__main__":
    main()
