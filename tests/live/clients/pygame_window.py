"""A pygame (SDL) window: two fields of colour; keys go to stdout, a click turns it yellow, `q` ends it."""

from __future__ import annotations

import pygame

LEFT, RIGHT, CLICKED = (200, 40, 90), (40, 160, 220), (250, 220, 10)


def main() -> None:
    pygame.display.init()
    screen = pygame.display.set_mode((400, 300))
    pygame.display.set_caption("two fields")
    left, clock = LEFT, pygame.time.Clock()
    while True:
        screen.fill(left, (0, 0, 200, 300))
        screen.fill(RIGHT, (200, 0, 200, 300))
        pygame.display.flip()
        for event in pygame.event.get():
            if event.type == pygame.TEXTINPUT:
                print(event.text, end="", flush=True)
                if event.text == "q":
                    return
            elif event.type == pygame.MOUSEBUTTONDOWN:
                left = CLICKED
            elif event.type == pygame.QUIT:
                return
        clock.tick(30)


if __name__ == "__main__":
    main()
