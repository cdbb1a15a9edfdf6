"""Who asks: API keys, and the fingerprints that the ledger knows them by."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from serving.errors import ApiError


def key_of(authorization: str, allowed: Sequence[str]) -> str | None:
    """Fingerprint of the key in an `Authorization` header; None where there is none.

    Raises:
        ApiError: keys are required and this is none of them.
    """
    scheme, _, key = authorization.partition(" ")
    given = key.strip() if scheme.lower() == "bearer" and key.strip() else None
    # Every key is compared, each in constant time: how long it takes tells nothing.
    matches = [hmac.compare_digest(k.encode(), (given or "").encode()) for k in allowed]
    if allowed and not any(matches):
        raise ApiError(401, "a valid API key is required", code="invalid_api_key")
    return fingerprint(given)


def fingerprint(key: str | None) -> str | None:
    """The name of a key in the ledger; the key itself is never stored."""
    return None if key is None else "key-" + hashlib.sha256(key.encode()).hexdigest()[:12]
