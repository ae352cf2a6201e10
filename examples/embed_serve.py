#!/usr/bin/env python3
"""Embeds the relay in an anyio program: a policy of one's own, and callbacks when windows and leases come and go.

    embed_serve.py SOCKET        serves SOCKET in front of $WAYLAND_DISPLAY, and says what happens, until Ctrl-C
    embed_serve.py SOCKET -- foot    the same for one program, and ends with it

An agent of a Qubes-style GUI would look like this: one proxy for each guest, titles in the guest's name, nothing that
could see other windows.
"""

from __future__ import annotations

import os
import subprocess
import sys

import anyio

import waylend


def policy_for(guest: str) -> waylend.Policy:
    """What this guest may do. The default policy hides screen capture and the like already."""
    return waylend.Policy(
        title_prefix=f"[{guest}] ",
        app_id_prefix=f"{guest}.",
        deny=("zwp_primary_selection_*", "gtk_primary_selection_*"),
        limits=waylend.Limits(clients=32, leases=64),
    )


def tell(event: waylend.RelayEvent) -> None:
    """Called in the program's own event loop."""
    match event:
        case waylend.SessionOpened(number, pid, uid):
            print(f"client {number}: process {pid} of user {uid}")
        case waylend.WindowOpened(number, window):
            print(f"client {number}: window {window} opens")
        case waylend.WindowNamed(number, window, what, text):
            print(f"client {number}: window {window} has the {what} {text!r}")
        case waylend.WindowClosed(number, window):
            print(f"client {number}: window {window} closes")
        case waylend.LeaseLent(number, lease, name, size_bytes):
            print(f"client {number}: lease {lease}: {name}, {size_bytes} bytes")
        case waylend.LeaseReturned(number, lease):
            print(f"client {number}: lease {lease} returned")
        case waylend.SessionEnded(number, reason):
            print(f"client {number}: gone{f' ({reason})' if reason else ''}")
    sys.stdout.flush()


async def main(socket: str, argv: list[str]) -> None:
    async with waylend.serve(listen=socket, policy=policy_for("work"), on_event=tell) as proxy:
        print(f"serving {proxy.listen_paths[0]}, memory is lent by {proxy.domain.mechanism}", flush=True)
        if argv:
            env = {**os.environ, "WAYLAND_DISPLAY": str(proxy.listen_paths[0])}
            await anyio.run_process(argv, env=env, stdin=subprocess.DEVNULL, check=False)
        else:
            await anyio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        anyio.run(main, sys.argv[1], sys.argv[3:])
    except KeyboardInterrupt:
        pass
    except waylend.WaylendError as error:
        sys.exit(f"embed_serve: {error}")
