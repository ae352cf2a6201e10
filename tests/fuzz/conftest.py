"""How long to fuzz: a few seconds among the other tests, or as long as you like::

FUZZ_EXAMPLES=1000000 pytest tests/fuzz
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "500")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")
