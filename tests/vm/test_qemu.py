"""What a VMM is told to give a guest."""

from __future__ import annotations

from xml.etree import ElementTree

from waylend.channel.transport import PORT_NAME
from waylend.vm.qemu import libvirt_xml, qemu_args

SIZE_BYTES = 1 << 20


def test_the_bar_is_the_shared_file() -> None:
    args = qemu_args("/run/bar", SIZE_BYTES, "/run/channel")
    assert f"memory-backend-file,id=waylend-bar,mem-path=/run/bar,size={SIZE_BYTES},share=on" in args
    assert "ivshmem-plain,memdev=waylend-bar" in args
    assert f"virtserialport,chardev=waylend-port,name={PORT_NAME}" in args


def test_a_comma_in_a_path_ends_no_option() -> None:
    assert any("path=/run/a,,b,reconnect" in arg for arg in qemu_args("/run/bar", SIZE_BYTES, "/run/a,b"))


def test_the_port_connects_again_in_the_words_of_the_version() -> None:
    assert any(arg.endswith("reconnect=1") for arg in qemu_args("b", SIZE_BYTES, "c", version=(9, 1)))
    for version in ((9, 2, 0), (11, 0, 1), ()):  # the last: not to be asked, like the QEMU of another machine
        assert any(arg.endswith("reconnect-ms=1000") for arg in qemu_args("b", SIZE_BYTES, "c", version=version))


def test_libvirts_xml_is_xml_whatever_the_paths() -> None:
    domain = ElementTree.fromstring(libvirt_xml("/run/<b>'&\"", SIZE_BYTES, "/run/'c'&"))
    source = domain.find("devices/channel/source")
    assert source is not None and source.get("path") == "/run/'c'&"
    args = [element.get("value", "") for element in domain.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")]
    assert any("mem-path=/run/<b>'&\"," in arg for arg in args)
