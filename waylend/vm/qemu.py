"""The options that give a QEMU machine its two devices: the aperture as a PCI BAR, and the port of the channel.

The BAR is ivshmem-plain's (docs/specs/ivshmem-spec.rst in QEMU's source): BAR 2 is the file of a memory backend, shared.
"""

from __future__ import annotations

import re
import subprocess
from xml.sax.saxutils import quoteattr

from waylend.channel.transport import PORT_NAME

# QEMU learned reconnect-ms= in 9.2, which deprecated reconnect= (docs/about/deprecated.rst); 11 has it no more.
_RECONNECT_MS_SINCE = (9, 2)
PROGRAM = "qemu-system-x86_64"


def qemu_version(program: str = PROGRAM) -> tuple[int, ...]:
    """Like (7, 2, 22); empty when it can't be run."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"version (\d+(?:\.\d+)+)", told)
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def _value(text: str) -> str:
    """A comma in an option's value is written twice."""
    return text.replace(",", ",,")


def _backend(bar: str, size_bytes: int) -> str:
    return f"memory-backend-file,id=waylend-bar,mem-path={_value(bar)},size={size_bytes},share=on"


def qemu_args(bar: str, size_bytes: int, socket_path: str, *, version: tuple[int, ...] = ()) -> list[str]:
    """For a machine with a PCI bus. ``bar``: the aperture's file, ``size_bytes`` long; ``socket_path``: the host half's.

    The host half runs first. The port connects again when the host half is another one.
    Without a ``version`` the options are those of new ones.
    """
    again = "reconnect=1" if version and version < _RECONNECT_MS_SINCE else "reconnect-ms=1000"
    return [
        *("-object", _backend(bar, size_bytes)),
        *("-device", "ivshmem-plain,memdev=waylend-bar"),
        *("-device", "virtio-serial"),
        *("-chardev", f"socket,id=waylend-port,path={_value(socket_path)},{again}"),
        *("-device", f"virtserialport,chardev=waylend-port,name={PORT_NAME}"),
    ]


def libvirt_xml(bar: str, size_bytes: int, socket_path: str) -> str:
    """What goes below <domain> for the same. libvirt's own <shmem> names no file, so the BAR takes the way of QEMU's options."""
    backend = _backend(bar, size_bytes)
    return f"""\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <devices>
    <channel type='unix'>
      <source mode='connect' path={quoteattr(socket_path)}>
        <reconnect enabled='yes' timeout='1'/>
      </source>
      <target type='virtio' name='{PORT_NAME}'/>
    </channel>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-object'/>
    <qemu:arg value={quoteattr(backend)}/>
    <qemu:arg value='-device'/>
    <qemu:arg value='ivshmem-plain,memdev=waylend-bar'/>
  </qemu:commandline>
</domain>
"""
