"""dma-bufs as backings. What needs a real one is skipped without a DRM node (modprobe vgem gives one); the rest runs anywhere."""

from __future__ import annotations

import fcntl
import glob
import mmap
import os
import random
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.domain.borrowers import FdBorrower, opened
from tests.processes import require
from waylend.backing import dmabuf
from waylend.backing.dmabuf import DmabufBacking, DumbBuffer, create_dumb, is_dmabuf
from waylend.domain.fuse.domain import FuseDomain
from waylend.errors import BackingLost, Unavailable
from waylend.lending.lease import Protection
from waylend.lending.pages import PAGE_SIZE, PageRange

WIDTH, HEIGHT = 100, 50


@pytest.fixture
def dumb() -> Iterator[DumbBuffer]:
    """A real dma-buf of 5 pages, and nothing of it left behind."""
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        buffer = create_dumb(WIDTH, HEIGHT)
    except Unavailable as missing:
        pytest.skip(f"{missing}")
    yield buffer
    os.close(buffer.fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def other_side(buffer: DumbBuffer) -> mmap.mmap:
    """The buffer as another program that has it maps it."""
    return mmap.mmap(buffer.fd, buffer.size_bytes)


# --- on any machine


def test_numbers_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    names = "DMA_BUF_IOCTL_SYNC DMA_BUF_SYNC_READ DMA_BUF_SYNC_WRITE DMA_BUF_SYNC_START DMA_BUF_SYNC_END DMA_BUF_MAGIC"
    says = "".join(
        f'printf("%lu ", (unsigned long){name});' for name in [*names.split(), "sizeof(struct dma_buf_sync)"]
    )
    source.write_text(
        "#include <stdio.h>\n#include <sys/ioctl.h>\n#include <linux/dma-buf.h>\n#include <linux/magic.h>\n"
        f"int main(void) {{ {says} return 0; }}"
    )
    subprocess.run([require("gcc"), "-o", f"{program}", f"{source}"], check=True)
    said = subprocess.run([f"{program}"], capture_output=True, check=True).stdout
    assert [int(word) for word in said.split()] == [
        dmabuf.DMA_BUF_IOCTL_SYNC,
        dmabuf.SYNC_READ,
        dmabuf.SYNC_WRITE,
        dmabuf.SYNC_START,
        dmabuf.SYNC_END,
        dmabuf.DMA_BUF_MAGIC,
        8,
    ]


def test_a_descriptor_that_is_no_dmabuf_is_refused_and_closed() -> None:
    for fd in (os.memfd_create("file"), os.open("/dev/null", os.O_RDWR), os.eventfd(0), os.open("/", os.O_RDONLY)):
        assert not is_dmabuf(fd)
        with pytest.raises(ValueError, match="it is none"):
            DmabufBacking(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    with pytest.raises(OSError, match="fstatfs"):
        is_dmabuf(-1)


def test_no_drm_node_is_said_with_its_remedy() -> None:
    if glob.glob("/dev/dri/card*"):
        pytest.skip("there is one here")
    with pytest.raises(Unavailable, match="no DRM node in /dev/dri") as missing:
        create_dumb(WIDTH, HEIGHT)
    assert "modprobe vgem" in missing.value.remedy


def test_a_node_that_makes_none_is_named() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="/dev/null exports no buffers"):
        create_dumb(WIDTH, HEIGHT, node="/dev/null")
    with pytest.raises(Unavailable, match="/dev/dri/none: No such file"):
        create_dumb(WIDTH, HEIGHT, node="/dev/dri/none")
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- with a DRM node


def test_a_dumb_buffer_is_what_was_asked_for(dumb: DumbBuffer) -> None:
    assert dumb.pitch_bytes >= WIDTH * 4
    assert dumb.size_bytes >= dumb.pitch_bytes * HEIGHT
    assert is_dmabuf(dumb.fd)
    assert os.lseek(dumb.fd, 0, os.SEEK_END) == dumb.size_bytes


def test_a_buffer_that_no_card_could_make_is_refused() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(OSError, match="CREATE_DUMB"):
            create_dumb(0, 0)
    except Unavailable as missing:
        pytest.skip(f"{missing}")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_it_reads_and_writes_what_the_others_see(dumb: DumbBuffer) -> None:
    content = random.Random(1).randbytes(dumb.size_bytes)
    with other_side(dumb) as theirs:
        theirs[:] = content
        backing = DmabufBacking(os.dup(dumb.fd), writable=True)
        assert backing.size_bytes == dumb.size_bytes
        pages = PageRange(0, dumb.size_bytes // PAGE_SIZE)
        assert backing.read(pages) == content
        assert backing.read(PageRange(1, 2)) == content[PAGE_SIZE : 2 * PAGE_SIZE]
        backing.write(PageRange(1, 2), b"w" * PAGE_SIZE)
        backing.sync()
        assert theirs[:] == content[:PAGE_SIZE] + b"w" * PAGE_SIZE + content[2 * PAGE_SIZE :]
        backing.close()
        backing.close()
        with pytest.raises(BackingLost, match="closed"):
            backing.read(pages)


def test_bounds_and_protection(dumb: DumbBuffer) -> None:
    backing = DmabufBacking(os.dup(dumb.fd))
    end = dumb.size_bytes // PAGE_SIZE
    with pytest.raises(BackingLost, match="beyond"):
        backing.read(PageRange(end, end + 1))
    assert backing.read(PageRange(end - 1, end + 1))[PAGE_SIZE:] == bytes(PAGE_SIZE)
    with pytest.raises(BackingLost, match="not mapped for writing"):
        backing.write(PageRange(0, 1), bytes(PAGE_SIZE))
    backing.close()


def test_a_device_that_is_not_done_is_waited_for_but_not_for_ever(dumb: DumbBuffer) -> None:
    """With a fence, which vgem lets anybody attach to a buffer (drm/vgem_drm.h): as if a GPU were still drawing."""
    cards = [path for path in glob.glob("/sys/class/drm/card*/device") if os.path.realpath(path).endswith("/vgem")]
    if not cards:
        pytest.skip("the DRM node is none of vgem's")
    fd_to_handle, attach, signal = 0xC00C642E, 0xC0106441, 0x40086442
    drm = os.open(f"/dev/dri/{cards[0].split('/')[4]}", os.O_RDWR | os.O_CLOEXEC)
    (handle,) = struct.unpack_from("=I", fcntl.ioctl(drm, fd_to_handle, struct.pack("=IIi", 0, 0, dumb.fd)))
    (fence,) = struct.unpack_from("=I", fcntl.ioctl(drm, attach, struct.pack("=IIII", handle, 1, 0, 0)), 8)
    impatient, patient = (DmabufBacking(os.dup(dumb.fd), ready_timeout_s=seconds) for seconds in (0.01, 5))
    with pytest.raises(BackingLost, match=r"still at work after 0\.01 s"):
        impatient.read(PageRange(0, 1))
    signalling = threading.Timer(0.05, lambda: fcntl.ioctl(drm, signal, struct.pack("=II", fence, 0)))
    signalling.start()
    assert patient.read(PageRange(0, 1)) == bytes(PAGE_SIZE)
    assert impatient.read(PageRange(0, 1)) == bytes(PAGE_SIZE)
    signalling.join()
    impatient.close()
    patient.close()
    os.close(drm)


def test_the_same_buffer_has_the_same_key(dumb: DumbBuffer) -> None:
    other = create_dumb(WIDTH, HEIGHT)
    first, again, different = DmabufBacking(os.dup(dumb.fd)), DmabufBacking(os.dup(dumb.fd)), DmabufBacking(other.fd)
    assert first.key == again.key != different.key
    for backing in (first, again, different):
        backing.close()


def test_it_is_lent_taken_back_and_written_back_like_any_other(dumb: DumbBuffer) -> None:
    with other_side(dumb) as theirs, opened(FuseDomain, aperture_pages=64) as domain:
        theirs[:4] = struct.pack("=I", 1)
        backing = DmabufBacking(os.dup(dumb.fd), writable=True)
        lease = domain.lend(backing, protection=Protection.READ_WRITE)
        with FdBorrower(domain.open_lease(lease), writable=True) as borrower:
            assert borrower.read(0, 4) == struct.pack("=I", 1)
            borrower.write(PAGE_SIZE, b"from the borrower")
            theirs[:4] = struct.pack("=I", 2)
            backing.invalidate()
            assert theirs[PAGE_SIZE : PAGE_SIZE + 17] == b"from the borrower"
            assert borrower.read(0, 4) == struct.pack("=I", 2)
