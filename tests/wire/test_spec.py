"""What a spec says about its messages' bytes."""

from __future__ import annotations

import pytest

from waylend.wire.spec import HEADER_BYTES, ArgType, Argument, InterfaceSpec, MessageSpec

INT = Argument("x", ArgType.INT)
FD = Argument("fd", ArgType.FD)
NEW = Argument("id", ArgType.NEW_ID, "wl_surface")
NEW_TYPELESS = Argument("id", ArgType.NEW_ID)
STRING = Argument("text", ArgType.STRING)
STRING_OR_NULL = Argument("text", ArgType.STRING, nullable=True)
OBJECT_OR_NULL = Argument("o", ArgType.OBJECT, "wl_buffer", nullable=True)
ARRAY = Argument("keys", ArgType.ARRAY)


@pytest.mark.parametrize(
    ("args", "since", "signature", "size_bytes", "fd_count"),
    [
        ((), 1, "", HEADER_BYTES, 0),
        ((), 4, "4", HEADER_BYTES, 0),
        ((INT, INT), 1, "ii", HEADER_BYTES + 8, 0),
        ((NEW, FD, INT), 1, "nhi", HEADER_BYTES + 8, 1),  # an fd has no bytes
        ((FD, FD), 2, "2hh", HEADER_BYTES, 2),
        ((OBJECT_OR_NULL, INT, INT), 1, "?oii", HEADER_BYTES + 12, 0),  # a null object is a word, too
        ((STRING,), 1, "s", None, 0),
        ((STRING_OR_NULL,), 1, "?s", None, 0),
        ((ARRAY, FD), 1, "ah", None, 1),
        ((INT, NEW_TYPELESS), 1, "isun", None, 0),
    ],
)
def test_signature_size_and_fds(
    args: tuple[Argument, ...], since: int, signature: str, size_bytes: int | None, fd_count: int
) -> None:
    spec = MessageSpec("wl_x", "m", 0, args, since)
    assert spec.signature == signature
    assert spec.size_bytes == size_bytes
    assert spec.fd_count == fd_count


def test_a_message_is_called_by_its_interface_and_name() -> None:
    assert str(MessageSpec("wl_surface", "commit", 6)) == "wl_surface.commit"


def interface(*since: int, version: int = 3) -> InterfaceSpec:
    return InterfaceSpec("x", version, tuple(MessageSpec("x", f"m{n}", n, since=s) for n, s in enumerate(since)))


def test_a_lower_version_lacks_the_later_messages() -> None:
    spec = interface(1, 1, 2, 3)
    assert [message.name for message in spec.at_version(2).requests] == ["m0", "m1", "m2"]
    assert [message.name for message in spec.at_version(1).requests] == ["m0", "m1"]
    assert spec.at_version(2).version == 2


def test_an_object_may_have_a_higher_version_than_its_interface() -> None:
    """It inherits the version of the object that made it, whose interface may have grown further."""
    spec = interface(1, 2)
    assert spec.at_version(3) is spec
    assert spec.at_version(9) is spec


@pytest.mark.parametrize("since", [(1, 2, 1), (4,), (0,)])
def test_check_refuses_versions_out_of_order(since: tuple[int, ...]) -> None:
    interface(1, 1, 2, 3).check()
    with pytest.raises(ValueError, match="since"):
        interface(*since).check()


@pytest.mark.parametrize("message", [MessageSpec("x", "m", 1), MessageSpec("y", "m", 0)])
def test_check_refuses_a_message_in_the_wrong_place(message: MessageSpec) -> None:
    with pytest.raises(ValueError, match="is not message 0 of x"):
        InterfaceSpec("x", 1, (), (message,)).check()
