"""The object map: which ids are what, in both ranges, held against a dumb oracle."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from waylend.errors import ProtocolError
from waylend.wire.objects import CLOSER_LOOK, DELETE_ID, DISPLAY_ID, SERVER_ID_START, Catalogue, ObjectMap
from waylend.wire.tables import load_tables

CATALOGUE = Catalogue(load_tables(), interposed_requests={"wl_surface.damage"}, interposed_events={"wl_pointer.motion"})
INTERFACES = ["wl_surface", "wl_callback", "wl_region", "wl_data_offer"]


def code_of(interface: str, version: int, message: str, *, event: bool = False) -> int | None:
    kind = CATALOGUE.kind(interface, version)
    spec = next(spec for spec in (kind.spec.events if event else kind.spec.requests) if spec.name == message)
    assert spec.size_bytes is not None
    return (kind.events if event else kind.requests).get(spec.size_bytes << 16 | spec.opcode)


class TestKinds:
    def test_a_plain_message_is_its_size_in_words(self) -> None:
        assert code_of("wl_surface", 4, "attach") == 5
        assert code_of("wl_pointer", 5, "frame", event=True) == 2

    def test_what_creates_or_destroys_has_an_effect(self) -> None:
        code = code_of("wl_compositor", 4, "create_surface")
        assert code is not None and code < DELETE_ID
        assert CATALOGUE.effects[code] == (3, 2, CATALOGUE.kind("wl_surface", 4))
        code = code_of("wl_region", 1, "destroy")
        assert code is not None and CATALOGUE.effects[code] == (2, 0, None)

    def test_fds_and_interposed_messages_get_a_closer_look(self) -> None:
        assert code_of("wl_shm", 1, "create_pool") == CLOSER_LOOK
        assert code_of("wl_surface", 4, "damage") == CLOSER_LOOK
        assert code_of("wl_pointer", 5, "motion", event=True) == CLOSER_LOOK
        assert code_of("wl_data_device", 3, "data_offer", event=True) == CLOSER_LOOK

    def test_delete_id_is_special(self) -> None:
        assert code_of("wl_display", 1, "delete_id", event=True) == DELETE_ID

    def test_a_version_lacks_later_messages(self) -> None:
        assert len(CATALOGUE.kind("wl_surface", 3).spec.requests) < len(CATALOGUE.kind("wl_surface", 4).spec.requests)

    def test_objects_inherit_the_version_of_what_made_them(self) -> None:
        code = code_of("wl_compositor", 3, "create_surface")
        assert code is not None
        child = CATALOGUE.effects[code][2]
        assert child is CATALOGUE.kind("wl_surface", 3)

    def test_a_zombie_has_events_only(self) -> None:
        kind = CATALOGUE.kind("wl_surface", 4)
        assert kind.zombie.events is kind.events
        assert not kind.zombie.requests
        assert kind.zombie.is_zombie and not kind.is_zombie

    def test_unknown_interfaces_are_unknown(self) -> None:
        with pytest.raises(KeyError):
            CATALOGUE.kind("wl_nothing", 1)


class TestIds:
    @pytest.mark.parametrize("object_id", [0, SERVER_ID_START, 0xFFFFFFFF])
    def test_a_client_keeps_to_its_range(self, object_id: int) -> None:
        with pytest.raises(ProtocolError, match="range"):
            ObjectMap(CATALOGUE).create_by_client(object_id, CATALOGUE.kind("wl_surface", 4))

    @pytest.mark.parametrize("object_id", [0, 1, SERVER_ID_START - 1, 1 << 32])
    def test_a_compositor_keeps_to_its_range(self, object_id: int) -> None:
        with pytest.raises(ValueError, match="range"):
            ObjectMap(CATALOGUE).create_by_compositor(object_id, CATALOGUE.kind("wl_data_offer", 3))

    def test_the_display_stays(self) -> None:
        objects = ObjectMap(CATALOGUE)
        objects.delete(DISPLAY_ID)
        objects.check()

    def test_labels_name_what_is_there(self) -> None:
        objects = ObjectMap(CATALOGUE)
        objects.create_by_client(7, CATALOGUE.kind("wl_surface", 4))
        assert objects.label(7) == "wl_surface#7"
        assert objects.label(8) == "unknown#8"


class AgainstOracle(RuleBasedStateMachine):
    """The oracle: a dict of id -> (interface, alive)."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = ObjectMap(CATALOGUE)
        self.oracle: dict[int, tuple[str, bool]] = {}

    ids = st.integers(2, 6)
    server_ids = st.integers(SERVER_ID_START, SERVER_ID_START + 3)
    interfaces = st.sampled_from(INTERFACES)

    @rule(object_id=ids, interface=interfaces)
    def client_creates(self, object_id: int, interface: str) -> None:
        kind = CATALOGUE.kind(interface, 3)
        if object_id in self.oracle:
            with pytest.raises(ProtocolError, match="still taken"):
                self.objects.create_by_client(object_id, kind)
        else:
            self.objects.create_by_client(object_id, kind)
            self.oracle[object_id] = (interface, True)

    @rule(object_id=server_ids, interface=interfaces)
    def compositor_creates(self, object_id: int, interface: str) -> None:
        self.objects.create_by_compositor(object_id, CATALOGUE.kind(interface, 3))
        self.oracle[object_id] = (interface, True)

    @precondition(lambda self: any(alive for _, alive in self.oracle.values()))
    @rule(data=st.data())
    def client_destroys(self, data: st.DataObject) -> None:
        object_id = data.draw(st.sampled_from([one for one, (_, alive) in self.oracle.items() if alive]))
        self.objects.destroy(object_id)
        self.oracle[object_id] = (self.oracle[object_id][0], False)

    @rule(object_id=ids)
    def compositor_deletes(self, object_id: int) -> None:
        self.objects.delete(object_id)
        self.oracle.pop(object_id, None)

    @invariant()
    def the_same(self) -> None:
        self.objects.check()
        seen = {one: (kind.name, not kind.is_zombie) for one, kind in self.objects.kinds.items() if one != DISPLAY_ID}
        assert seen == self.oracle


TestAgainstOracle = AgainstOracle.TestCase
