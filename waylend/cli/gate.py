"""Waits for a byte on a pipe, then becomes APP: so APP is started before waylend goes to jail, and runs once its proxy is there.

Run as a file, without waylend: ``gate.py FD terminal|- APP ARGS...``; with ``terminal`` APP is what Ctrl-C is for.
"""

import os
import signal
import sys


def main() -> None:
    fd, takes_terminal, argv = int(sys.argv[1]), sys.argv[2] == "terminal", sys.argv[3:]
    os.setpgid(0, 0)  # what APP starts can be ended with it
    if not os.read(fd, 1):
        os._exit(125)
    os.close(fd)
    if takes_terminal:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"waylend: can't run {argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
