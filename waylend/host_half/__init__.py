"""The compositor's side of a guest in a machine: its leases, its aperture, and what a guest half may attach."""
