"""Borrowers, by the mechanism that lends to them: a folder each, and what all of them share."""
