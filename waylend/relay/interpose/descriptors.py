"""What each request may carry: the table of all that have descriptors, and the interposer that holds clients to it.

The compositor maps, reads, writes and closes what it is handed, in the one thread that serves everybody. So nothing goes on
that could make it wait (docs/threat-model.md). A request that wants something else ends its client; only what a client wants
to be *written* to costs it no more than that transfer: whoever writes finds that nobody reads, and the client finds the end.
"""

from __future__ import annotations

import os
from typing import ClassVar, NamedTuple

from waylend.errors import ProtocolError
from waylend.foreign.kinds import Descriptor, DescriptorKind
from waylend.relay.interpose import FdMessage, Interposer

_FILE = frozenset({DescriptorKind.SHARED_MEMORY, DescriptorKind.LOCAL_FILE})
_DMABUF = frozenset({DescriptorKind.DMABUF})
#: What is written to without waiting for more than its reader, as with a pipe on any compositor.
_WRITABLE = _FILE | {DescriptorKind.PIPE, DescriptorKind.LOCAL_DEVICE}


class Carries(NamedTuple):
    """``kinds`` are all that may come; ``code`` is what the interface has for another (its own errors, by its protocol)."""

    kinds: frozenset[DescriptorKind]
    code: int = ProtocolError.IMPLEMENTATION


#: Every request of the tables that has descriptors (a test walks them).
REQUESTS = {
    # A file on a disk of this machine is served by this kernel alone; wf-recorder has its pools in /tmp.
    "wl_shm.create_pool": Carries(_FILE, 2),  # invalid_fd
    "zwp_linux_buffer_params_v1.add": Carries(_DMABUF),
    "wl_drm.create_prime_buffer": Carries(_DMABUF),
    "wp_linux_drm_syncobj_manager_v1.import_timeline": Carries(
        frozenset({DescriptorKind.SYNCOBJ}), 1
    ),  # invalid_timeline
    "zwp_linux_surface_synchronization_v1.set_acquire_fence": Carries(
        frozenset({DescriptorKind.SYNC_FILE}), 0
    ),  # invalid_fence
    "wp_image_description_creator_icc_v1.set_icc_file": Carries(_FILE, 2),  # bad_fd
    "zwlr_gamma_control_v1.set_gamma": Carries(_FILE, 1),  # invalid_gamma
    "zwp_virtual_keyboard_v1.keymap": Carries(_FILE),
    # Its socket is the client's own, and the compositor would take clients from it: no policy can vouch for that.
    "wp_security_context_manager_v1.create_listener": Carries(frozenset()),
}

#: Those of them by which a client wants to be written to.
TRANSFERS = (
    "wl_data_offer.receive",
    "zwp_primary_selection_offer_v1.receive",
    "gtk_primary_selection_offer.receive",
    "zwlr_data_control_offer_v1.receive",
    "ext_data_control_offer_v1.receive",
)


class Descriptors(Interposer):
    """Holds clients to the table. Their descriptors have been looked at (``foreign.closing.looked_at``)."""

    REQUESTS: ClassVar = (*REQUESTS, *TRANSFERS)

    def _check(self, message: FdMessage) -> None:
        carries = REQUESTS[message.spec.full_name]
        for fd in message.fds:
            assert isinstance(fd, Descriptor)
            if fd.kind not in carries.kinds:
                wanted = " or ".join(sorted(kind.value for kind in carries.kinds)) or "what a guest may give"
                self.refuse(message, carries.code, f"the file descriptor is {fd.what}, not {wanted}")

    create_pool = add = create_prime_buffer = import_timeline = set_acquire_fence = _check
    set_icc_file = set_gamma = keymap = create_listener = _check

    def receive(self, message: FdMessage) -> None:
        (fd,) = message.fds
        assert isinstance(fd, Descriptor)
        if fd.kind not in _WRITABLE:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.close(reading)
            message.fds[0] = Descriptor(writing, DescriptorKind.PIPE)
