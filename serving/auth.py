"""Who asks: API keys, and the fingerprints that the ledger knows them by."""

from __future__ import annotations

import hashlib


def fingerprint(key: str | None) -> str | None:
    """The name of a key in the ledger; the key itself is never stored."""
    return None if key is None else "key-" + hashlib.sha256(key.encode()).hexdigest()[:12]
