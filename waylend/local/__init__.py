"""A proxy for a local guest: a process, a container, another user."""
