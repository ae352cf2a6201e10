"""Measurements of waylend against doing without it, and against waypipe where that is installed. No part of the package."""
