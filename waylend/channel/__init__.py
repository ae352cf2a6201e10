"""The byte link between the two halves: messages, streams with credit, transports."""
