"""Short hashes of content, which are the same on every machine."""

from __future__ import annotations

import hashlib


def short_hash(content: str | bytes) -> str:
    """The first 16 hex digits of the sha256 of ``content``. A text is hashed as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:16]
