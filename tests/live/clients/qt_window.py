"""A PySide6 window: two fields of colour; keys go to stdout, a click turns it yellow, `q` ends it."""

from __future__ import annotations

import os
import sys

from PySide6.QtCore import QRect, Qt
from PySide6.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QApplication, QWidget

LEFT, RIGHT, CLICKED = (200, 40, 90), (40, 160, 220), (250, 220, 10)


class Fields(QWidget):  # type: ignore[misc, unused-ignore]  # PySide6 is the live group's: `make lint` goes without
    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("two fields")
        self.setFixedSize(400, 300)
        self.left = LEFT

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(QRect(0, 0, 200, 300), QColor(*self.left))
        painter.fillRect(QRect(200, 0, 200, 300), QColor(*RIGHT))
        painter.end()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        print(event.text(), end="", flush=True)
        if event.text() == "q":
            self.close()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self.left = CLICKED
            self.update()


if __name__ == "__main__":
    application = QApplication(sys.argv)
    window = Fields()
    window.show()
    status = application.exec()
    # Not by Qt's way: now and then its display waits for its event thread, and that in wl_display_read_events for the display,
    # for ever, also directly on a compositor.
    os._exit(status)
