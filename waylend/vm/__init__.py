"""A throw-away VM of the running system, and what VMMs need to be told of the aperture and the channel."""
