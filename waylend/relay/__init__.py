"""Moves messages between a client and a compositor: loop, endpoints, sessions."""
