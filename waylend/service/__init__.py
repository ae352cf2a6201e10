"""What anyio does around a relay: its thread, the control socket, watching the compositor. No message passes here."""
