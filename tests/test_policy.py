"""Policies: what is shown by default, what rules change, and that a misspelt rule is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from waylend.errors import UsageError
from waylend.policy import DEFAULT_GLOBALS, Limits, Policy, read_policy
from waylend.wire.tables import load_tables

HIDDEN = [
    "zwlr_screencopy_manager_v1",
    "ext_image_copy_capture_manager_v1",
    "zwlr_export_dmabuf_manager_v1",
    "zwp_virtual_keyboard_manager_v1",
    "zwlr_virtual_pointer_manager_v1",
    "zwlr_layer_shell_v1",
    "zwlr_output_manager_v1",
    "ext_session_lock_manager_v1",
    "zwlr_data_control_manager_v1",
    "ext_data_control_manager_v1",
    "zwlr_foreign_toplevel_manager_v1",
    "ext_foreign_toplevel_list_v1",
    "zwp_input_method_manager_v2",
    "wp_security_context_manager_v1",
    "wp_drm_lease_device_v1",
]


@pytest.mark.parametrize("interface", HIDDEN)
def test_hidden_unless_allowed(interface: str) -> None:
    assert interface in load_tables()  # or the name is misspelt here
    assert not Policy().announces(interface)
    assert Policy(allow=(interface,)).announces(interface)


def test_the_default_names_nothing_that_is_unknown() -> None:
    assert set(load_tables()) >= DEFAULT_GLOBALS


def test_it_asks_for_what_its_own_rules_show() -> None:
    policy = Policy(allow=("zwlr_*", "wl_shm"), deny=("zwlr_layer_*",))
    assert policy.asks_for("zwlr_gamma_control_manager_v1")
    assert not policy.asks_for("zwlr_layer_shell_v1")
    assert not policy.asks_for("wl_shm")


def test_deny_wins() -> None:
    policy = Policy(allow=("wl_*",), deny=("wl_s*",))
    assert policy.announces("wl_compositor")
    assert not policy.announces("wl_shm")


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        '[globals]\nallow = ["zwlr_*"]\ndeny = ["wl_output"]\nsecurity_context = false\n'
        '[windows]\ntitle_prefix = "[w] "\napp_id_prefix = "w."\n[limits]\nclients = 3\n'
    )
    expected = Policy(("zwlr_*",), ("wl_output",), "[w] ", "w.", Limits(clients=3), security_context=False)
    assert read_policy(path) == expected
    changed = expected.with_changes(allow=["a"], title_prefix="")
    assert not changed.security_context
    assert changed.with_changes(security_context=True).security_context
    assert (changed.allow, changed.title_prefix, changed.app_id_prefix) == (("zwlr_*", "a"), "", "w.")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[globals]\nalow = []", "unknown key 'alow'"),
        ("[global]", "unknown table 'global'"),
        ("[limits]\nclient = 3", "unknown limit 'client'"),
        ("[limits]\nclients = 0", "must be at least 1"),
        ("[limits]\nclients = true", "must be a whole number"),
        ("[limits]\naperture_bytes = 4294967296", "2 GiB is the most"),
        ('[globals]\nallow = "wl_shm"', "allow: must be a list"),
        ('[globals]\nsecurity_context = "no"', "security_context: must be true or false"),
        ("globals = 3", "globals: must be a table"),
        ('[windows]\ntitle_prefix = "\\u001b[2J"', "can't be shown"),
        ("[windows]\ntitle_prefix = 3", "must be a string"),
        ("[globals", "policy.toml: Expected"),
        ("a = " + "[" * 10_000 + "]" * 10_000, "hundreds deep"),
    ],
)
def test_what_it_does_not_know_it_refuses(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="policy") as raised:
        read_policy(path)
    assert complaint in str(raised.value)
