"""Bytes to messages and back, by tables. No socket, no clock; descriptors are opaque tokens."""
