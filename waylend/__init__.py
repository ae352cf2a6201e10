"""waylend runs a guest's applications on the host's desktop, as a Wayland proxy whose memory is lent."""
