"""Looks for what must not be told: users' names and emails, passwords and tokens, in logs, metrics and spans."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote, quote_plus


def forbidden_in(text: str, secrets: Iterable[str]) -> list[str]:
    """Return the secrets that the text tells: as they are, in another case, JSON-escaped, in a URL, or in base64.

    Secrets of less than four characters are refused: they would be found by chance.
    """
    folded = text.casefold()
    return sorted({secret for secret in secrets if any(form in folded for form in _forms(secret))})


def _forms(secret: str) -> set[str]:
    if len(secret) < 4:
        raise ValueError(f"{secret!r} is too short to be looked for")
    plain = {
        secret,
        json.dumps(secret)[1:-1],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        repr(secret)[1:-1],
    }
    forms = {form.casefold() for form in plain}
    # Where a secret stands inside of something encoded, its first and last characters mix with their neighbours.
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        inner = coded[4 if offset else 0 : -1]
        if len(inner) >= 8:
            forms.add(inner.casefold())
    return forms
