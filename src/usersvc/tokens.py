"""Opaque tokens: a place to go on from, bound to its request and sealed, so that a forged or foreign one is known.

base64url of 16 bytes of HMAC-SHA-256 and the place. The key lives in the database: every instance on it opens every
other's tokens, and a token of another database is foreign. Sealed, not secret: a place is an id or a number.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

_SEAL = 16  # bytes: 2^-128 to guess one


class BadToken(ValueError):
    """The token was changed, or made for another request or database."""


class Tokens:
    """Makes and opens tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, request: str, place: str) -> str:
        """Make a token that `open` accepts for the same request only."""
        body = place.encode()
        return base64.urlsafe_b64encode(self._seal(request, body) + body).rstrip(b"=").decode()

    def open(self, request: str, token: str) -> str:
        """Return the place; raise BadToken if the token was not made by `seal` for this request."""
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as e:
            raise BadToken from e
        seal, body = data[:_SEAL], data[_SEAL:]
        # One token, one spelling: base64 leaves bits of the last letter unused.
        if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != token:
            raise BadToken
        if not hmac.compare_digest(seal, self._seal(request, body)):
            raise BadToken
        return body.decode()

    def _seal(self, request: str, body: bytes) -> bytes:
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        message = f"{len(request)}:{request}".encode() + body
        return hmac.digest(self._key, message, hashlib.sha256)[:_SEAL]
