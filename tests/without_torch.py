"""`pytest -p tests.without_torch`: as if torch and transformers were not installed."""

from __future__ import annotations

import sys

for _name in ("torch", "transformers"):
    sys.modules[_name] = None  # type: ignore[assignment]
