"""What changes on surfaces is stale in every content that needs it: against pictures, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.guest_half.damage_pixels import pixels_of
from tests.guest_half.work import lines_run
from waylend.guest_half.surfaces import MAX_FOLLOWED, SurfaceContent, Surfaces

WIDTH, HEIGHT = 6, 5
SURFACE = 3


class Hidden(list[SurfaceContent]):
    """What no surface shows any more, in the order in which that was told."""


@dataclass
class Shown:
    hidden: Hidden = field(default_factory=Hidden)

    def __post_init__(self) -> None:
        self.surfaces: Surfaces[SurfaceContent] = Surfaces(self.hidden.append)
        self.surfaces.create(SURFACE)

    def commit(self, content: SurfaceContent | None, *boxes: tuple[int, int, int, int], surface: int = SURFACE) -> None:
        """What the interposer does: shows it, and copies what is stale."""
        self.surfaces.attach(surface, content)
        for box in boxes:
            self.surfaces.damage_buffer(surface, box)
        current = self.surfaces.commit(surface)
        assert current is content
        if current is not None:
            current.copied()


@pytest.fixture
def shown() -> Shown:
    return Shown()


def content() -> SurfaceContent:
    return SurfaceContent(WIDTH, HEIGHT)


def test_what_was_never_copied_is_stale_everywhere(shown: Shown) -> None:
    new = content()
    shown.surfaces.attach(SURFACE, new)
    assert shown.surfaces.commit(SURFACE) is new
    assert new.stale.whole


def test_what_one_commit_changes_is_stale_in_the_other_buffers_of_the_surface(shown: Shown) -> None:
    front, back = content(), content()
    shown.commit(front)
    shown.commit(back)
    shown.commit(front, (1, 1, 2, 1))
    assert pixels_of(back.stale) == {(1, 1), (2, 1)}
    shown.commit(back, (0, 0, 1, 1))
    assert pixels_of(front.stale) == {(0, 0)}


def test_a_buffer_that_another_surface_showed_is_stale_everywhere(shown: Shown) -> None:
    one = content()
    shown.surfaces.create(4)
    shown.commit(one)
    shown.surfaces.attach(4, one)
    shown.surfaces.commit(4)
    assert one.stale.whole


def test_what_one_surface_changes_is_stale_in_a_buffer_that_another_shows_too(shown: Shown) -> None:
    both, other = content(), content()
    shown.surfaces.create(4)
    shown.commit(both)
    shown.commit(both, surface=4)
    shown.commit(other, (1, 1, 1, 1), surface=4)
    shown.surfaces.commit(SURFACE)  # its copy of that pixel is from before the client draws there
    both.copied()
    shown.surfaces.attach(4, both)
    shown.surfaces.commit(4)
    assert (1, 1) in pixels_of(both.stale)


def test_of_more_buffers_than_are_followed_the_oldest_is_stale_everywhere(shown: Shown) -> None:
    contents = [content() for _ in range(MAX_FOLLOWED + 1)]
    for one in contents:
        shown.commit(one)
    assert contents[0].stale.whole
    assert not contents[1].stale.whole
    shown.surfaces.check()


@pytest.mark.parametrize("change", ["scale", "transform", "source", "destination", "viewport"])
def test_a_change_of_geometry_changes_everything(shown: Shown, change: str) -> None:
    front, back = content(), content()
    shown.surfaces.create_viewport(9, SURFACE)
    shown.surfaces.set_destination(9, (3, 3))
    shown.commit(front)
    shown.commit(back)
    if change == "scale":
        shown.surfaces.set_scale(SURFACE, 2)
    elif change == "transform":
        shown.surfaces.set_transform(SURFACE, 2)
    elif change == "source":
        shown.surfaces.set_source(9, (0.0, 0.0, 2.0, 2.0))
    elif change == "destination":
        shown.surfaces.set_destination(9, (7, 7))
    else:
        shown.surfaces.destroy_viewport(9)
    shown.surfaces.commit(SURFACE)
    assert front.stale.whole
    assert back.stale.whole


def test_a_viewport_of_a_surface_that_is_gone_changes_no_other(shown: Shown) -> None:
    shown.surfaces.create_viewport(9, SURFACE)
    shown.surfaces.destroy(SURFACE)
    shown.surfaces.create(SURFACE)
    one = content()
    shown.commit(one)
    shown.surfaces.set_destination(9, (3, 3))
    shown.surfaces.destroy_viewport(9)
    shown.surfaces.commit(SURFACE)
    assert not one.stale
    shown.surfaces.create_viewport(10, 77)
    shown.surfaces.set_destination(10, (3, 3))


def test_it_is_told_once_that_no_surface_shows_it_any_more(shown: Shown) -> None:
    one, other = content(), content()
    shown.surfaces.create(4)
    shown.commit(one)
    shown.commit(one, surface=4)
    shown.commit(one)
    shown.commit(other)
    assert not shown.hidden
    shown.surfaces.destroy(4)
    assert shown.hidden == [one]
    shown.commit(None)
    assert shown.hidden == [one, other]


def test_what_was_destroyed_before_its_commit_is_not_shown(shown: Shown) -> None:
    one = content()
    shown.surfaces.attach(SURFACE, one)
    one.destroy()
    assert shown.surfaces.commit(SURFACE) is None
    assert not one.shown_by


def test_what_was_destroyed_on_the_screen_stays_there(shown: Shown) -> None:
    one = content()
    shown.commit(one)
    one.destroy()
    assert shown.surfaces.commit(SURFACE) is one
    shown.surfaces.check()
    shown.commit(None)
    assert shown.hidden == [one]


@settings(deadline=None)
@given(st.integers(65, 200))
def test_too_many_rectangles_are_everything(count: int) -> None:
    shown = Shown()
    front, back = content(), content()
    shown.commit(front)
    shown.commit(back)
    shown.commit(front, *[(0, 0, 1, 1)] * count)
    assert back.stale.whole


def work_of(count: int) -> int:
    """Of ``count`` contents, each made, shown on a surface of its own and destroyed, and of their surfaces."""
    surfaces: Surfaces[SurfaceContent] = Surfaces(lambda _content: None)
    contents = [content() for _ in range(count)]

    def run() -> None:
        for number, one in enumerate(contents):
            surfaces.create(number)
            surfaces.attach(number, one)
            surfaces.commit(number)
        for one in contents:
            one.destroy()
        for number in range(count):
            surfaces.destroy(number)

    return lines_run(run)


def test_the_work_does_not_grow_with_how_many_there_are() -> None:
    assert work_of(1000) <= 10.1 * work_of(100)


class Pictures(RuleBasedStateMachine):
    """Buffers are pictures; a copy of each is all that the compositor sees. What it sees must always be what was drawn.

    A client draws in a buffer what it says has changed since the last commit, over what was on the surface before; never in
    one that another surface shows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surfaces: Surfaces[SurfaceContent] = Surfaces(lambda _content: None)
        for number in (0, 1):
            self.surfaces.create(number)
        self.contents = [content() for _ in range(4)]
        self.drawn = [self.blank() for _ in self.contents]
        self.copies = [self.blank() for _ in self.contents]
        self.on_surface = [self.blank(), self.blank()]
        self.shown: list[SurfaceContent | None] = [None, None]
        self.colour = 0

    @staticmethod
    def blank() -> dict[tuple[int, int], int]:
        return {(x, y): 0 for x in range(WIDTH) for y in range(HEIGHT)}

    @rule(surface=st.integers(0, 1), which=st.integers(0, 3), x=st.integers(0, 5), y=st.integers(0, 4),
          width=st.integers(1, 4), height=st.integers(1, 4))  # fmt: skip
    def frame(self, surface: int, which: int, x: int, y: int, width: int, height: int) -> None:
        one = self.contents[which]
        if self.shown[1 - surface] is one:
            return
        self.colour += 1
        picture = self.on_surface[surface]
        for spot in picture:
            if x <= spot[0] < x + width and y <= spot[1] < y + height:
                picture[spot] = self.colour
        self.drawn[which] = dict(picture)
        self.surfaces.attach(surface, one)
        self.surfaces.damage_buffer(surface, (x, y, width, height))
        self.copy(surface)

    @rule(surface=st.integers(0, 1), which=st.integers(0, 3))
    def the_same_again(self, surface: int, which: int) -> None:
        self.on_surface[surface] = dict(self.drawn[which])
        self.surfaces.attach(surface, self.contents[which])
        self.surfaces.damage_buffer(surface, (0, 0, WIDTH, HEIGHT))
        self.copy(surface)

    @rule(surface=st.integers(0, 1))
    def nothing_new(self, surface: int) -> None:
        self.copy(surface)

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.colour)
    def another_buffer_in_its_place(self, which: int) -> None:
        self.contents[which].destroy()
        self.contents[which] = content()
        self.drawn[which], self.copies[which] = self.blank(), self.blank()

    def copy(self, surface: int) -> None:
        shown = self.shown[surface] = self.surfaces.commit(surface)
        if shown is None or shown.destroyed:
            return
        which = self.contents.index(shown)
        for spot in pixels_of(shown.stale):
            self.copies[which][spot] = self.drawn[which][spot]
        shown.copied()
        assert self.copies[which] == self.drawn[which]

    @invariant()
    def holds(self) -> None:
        self.surfaces.check()


TestPictures = Pictures.TestCase
TestPictures.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
