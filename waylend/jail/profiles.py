"""What each kind of process still needs once it is set up; everything else it gives up.

| process | may open | may connect to | may start | memory | descriptors |
|---|---|---|---|---|---|
| serving | nothing but files of its own mount | nothing | nothing | 1 GiB | 8192 |
| relay, either half | its program, /dev/null, /proc/self; names of its sockets | unix sockets, vsocks | nothing | 2 GiB | 65536 |

"Memory" is what a process can write to itself (RLIMIT_DATA, getrlimit(2)); what it maps of others is not in it. The system calls
are those that CPython 3.11 to 3.14, glibc and musl were seen to make in the tests (strace), and their kin.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from waylend.errors import Unavailable
from waylend.jail import landlock, seccomp
from waylend.jail.landlock import READ, WRITE, Access, Rule
from waylend.jail.seccomp import Where
from waylend.linux import no_new_privileges

logger = logging.getLogger(__name__)

_CLONE_THREAD = 0x10000
_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_VFORK = 0x100, 0x200, 0x400, 0x4000
_AF_UNIX, _AF_VSOCK = 1, 40
#: FIONREAD, FIONBIO, FIOCLEX; of a terminal TCGETS and TIOCGWINSZ, and whose it is just now: TIOCGPGRP, TIOCSPGRP.
_IOCTLS = (0x541B, 0x5421, 0x5451, 0x5401, 0x5413, 0x540F, 0x5410)

_MEMORY = "brk madvise membarrier mmap mmap2 mprotect mremap munmap memfd_create"
_FILES = (
    "close close_range dup dup2 dup3 fcntl fcntl64 fstat fstat64 fstatfs fstatfs64 lseek _llseek read readv pread64 preadv "
    "preadv2 write writev pwrite64 pwritev pwritev2 fallocate ftruncate ftruncate64 fsync fdatasync sync_file_range fadvise64 "
    "flock getdents64 newfstatat fstatat64 stat stat64 lstat lstat64 statx statfs statfs64 readlink readlinkat access faccessat "
    "faccessat2 getcwd pipe2 eventfd2 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll ppoll_time64 select "
    "pselect6 pselect6_time64 timerfd_create timerfd_settime signalfd4 copy_file_range splice sendfile"
)
_TIME = (
    "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 nanosleep "
    "gettimeofday time times getrusage"
)
_THREADS = (
    "exit exit_group futex futex_time64 futex_waitv get_robust_list set_robust_list rseq sched_yield sched_getaffinity getcpu "
    "set_tid_address gettid tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 "
    "rt_sigpending sigaltstack restart_syscall arch_prctl"
)
_ITSELF = (
    "getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid uname sysinfo "
    "getrandom getrlimit ugetrlimit prlimit64 setrlimit getpriority umask capget"
)
_SOCKETS = (
    "sendmsg recvmsg sendmmsg recvmmsg sendto recvfrom send recv getsockopt setsockopt getsockname getpeername shutdown"
)
_NEW_SOCKETS = "socketpair accept accept4 bind listen connect"
_NAMES = (
    "open openat unlink unlinkat mkdir mkdirat rmdir symlink symlinkat rename renameat renameat2 chmod fchmod fchmodat"
)
_OTHERS = "kill wait4 waitid pidfd_open pidfd_send_signal"

#: What is said by name to be refused. What nobody named is refused, too.
REFUSED = (
    "execve execveat fork vfork ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd mount umount umount2 pivot_root "
    "chroot fsopen fsmount fspick fsconfig move_mount open_tree mount_setattr setns bpf perf_event_open userfaultfd "
    "io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key init_module finit_module delete_module "
    "kexec_load kexec_file_load reboot swapon swapoff open_by_handle_at name_to_handle_at personality setuid setgid "
    "setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset iopl ioperm sethostname acct quotactl syslog "
    "settimeofday clock_settime adjtimex mknod mknodat link linkat"
).split()

_FORKS = (Where("clone", 0, 0, _CLONE_THREAD | _CLONE_VM), Where("clone", 0, _CLONE_VFORK, _CLONE_VFORK))
#: What closes a stranger's descriptor in our place (``linux.process_that_closes``): it has nothing that we don't have.
_CLOSES = Where("clone", 0, _CLONE_VM | _CLONE_FILES)
_NEW_THREADS = Where("clone", 0, _CLONE_THREAD, _CLONE_THREAD)


@dataclass(frozen=True)
class Profile:
    """One kind of process, as the table above has it."""

    name: str
    rules: Sequence[Rule]
    calls: Sequence[str | Where]
    memory_bytes: int
    descriptors: int
    #: Signals reach only who is in the same jail.
    signals_within: bool = False
    refused: Sequence[str | Where] = field(default=(*REFUSED, *_FORKS))


def serving(root_fd: int, *, descriptors: int = 8192) -> Profile:
    """The process that serves faults of the mount whose root is ``root_fd``: it opens files of that mount alone."""
    calls: list[str | Where] = [*f"{_MEMORY} {_FILES} {_TIME} {_THREADS} {_ITSELF} {_SOCKETS}".split()]
    calls += [*_ioctls(), _NEW_THREADS, "openat", "wait4", "waitid"]
    rules = (Rule(root_fd, READ | WRITE),)
    return Profile("serving", rules, calls, 1 << 30, descriptors, signals_within=True)


def relaying(
    *,
    own_dir: str | None = None,
    names_in: Iterable[str] = (),
    makes_in: Iterable[str] = (),
    uses: Iterable[str] = (),
    reads: Iterable[str] = (),
) -> Profile:
    """A process with a relay. ``own_dir``: a folder of waylend's, for all that it makes later. ``names_in``: where it removes its
    sockets; ``makes_in``: where it makes new ones, too, and links. ``uses``: files and devices that it opens again and again.
    ``reads``: folders and files that it reads.
    """
    removes = Access.REMOVE_FILE | Access.REMOVE_DIR | Access.READ_DIR
    makes = removes | Access.MAKE_SOCK | Access.MAKE_SYM
    rules = [
        *(Rule(path, READ) for path in (*_program(), "/proc/self", *reads)),
        Rule(os.devnull, READ | WRITE),
        *(Rule(path, removes) for path in names_in),
        *(Rule(path, makes) for path in makes_in),
        *(Rule(path, READ | WRITE | Access.IOCTL_DEV) for path in uses),
        *([] if own_dir is None else [Rule(own_dir, makes | READ | WRITE | Access.MAKE_REG)]),
    ]
    calls: list[str | Where] = [
        *f"{_MEMORY} {_FILES} {_TIME} {_THREADS} {_ITSELF} {_SOCKETS} {_NEW_SOCKETS} {_NAMES} {_OTHERS}".split()
    ]
    calls += [*_ioctls(), _NEW_THREADS, _CLOSES, Where("socket", 0, _AF_UNIX), Where("socket", 0, _AF_VSOCK)]
    calls += [Where("unshare", 0, _CLONE_FS)]  # a umask of a thread's own
    return Profile("relay", rules, calls, 2 << 30, 65536)


def _ioctls() -> Iterable[Where]:
    return (Where("ioctl", 1, request) for request in _IOCTLS)


def _program() -> Iterable[str]:
    """Where the interpreter, its libraries and our own modules are: what is imported late is read from there."""
    prefixes = (f"{sys.prefix}/", f"{sys.base_prefix}/lib/")
    found = {os.path.dirname(os.__file__), *(path for path in sys.path if path.startswith(prefixes))}
    found |= {path for path in sys.path if path.endswith(("/site-packages", "/dist-packages"))}
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return sorted(
        {*found, home, "/usr/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"}
    )


@dataclass(frozen=True)
class Held:
    """What a jail holds here; what is missing, and why."""

    holds: tuple[str, ...]
    missing: tuple[str, ...]


def enter(profile: Profile, *, governs_files: bool = True) -> Held:
    """Gives up all that ``profile`` doesn't have, for good. Threads that run already keep their files: see ``enter_thread``.

    Without ``governs_files`` the calling thread keeps them, too.

    Where the machine lacks a mechanism, the others hold. Never raises for that.
    """
    holds, missing = ["no new privileges"], []
    _limit(resource.RLIMIT_DATA, profile.memory_bytes)
    _limit(resource.RLIMIT_NOFILE, profile.descriptors)
    _limit(resource.RLIMIT_CORE, 0)
    with ExitStack() as stack:
        calls = None
        try:  # libseccomp is a file that must be opened before
            calls = stack.enter_context(closing(seccomp.Filter(profile.calls, profile.refused)))
        except Unavailable as error:
            missing.append(f"{error}")
        no_new_privileges()
        version = landlock.version()
        if not governs_files:
            missing.append("what it opens is another process's")
        elif version:
            enter_thread(profile)
            holds.append(f"Landlock {version}")
        else:
            missing.append("the kernel has no Landlock")
        if calls is not None:
            try:
                calls.enter()
                holds.append("seccomp")
            except Unavailable as error:
                missing.append(f"{error}")
    for why in missing:
        logger.info("the jail of this process (%s) is weaker than it could be: %s", profile.name, why)
    return Held(tuple(holds), tuple(missing))


def enter_thread(profile: Profile) -> None:
    """The part that is a thread's own, for the calling one, and those that it starts."""
    if landlock.version():
        landlock.enter(profile.rules, signals_within=profile.signals_within)
    else:
        no_new_privileges()


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(which, (most, most))
