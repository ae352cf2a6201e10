"""File descriptors that strangers sent: what they are, and how they are closed. Nothing here asks or waits for a stranger."""
