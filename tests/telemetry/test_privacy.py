from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from support.privacy import forbidden_in

SECRETS = ["Ada Lovelace", "ada@example.org", "Žofie"]


@pytest.mark.parametrize(
    "text",
    [
        "hello Ada Lovelace",
        "ADA LOVELACE",
        json.dumps({"name": "Žofie"}),
        quote("/v1/users?email=ada@example.org"),
        "?email=ada%40example.org&name=Ada+Lovelace",
        base64.b64encode(b"xx" + b"Ada Lovelace" + b"yy").decode(),
    ],
)
def test_a_secret_is_found_in_every_form_that_it_travels_in(text: str) -> None:
    assert forbidden_in(text, SECRETS)


def test_innocent_text_is_not_accused() -> None:
    assert forbidden_in("lovelace ada example.org adaexample", SECRETS) == []


def test_secrets_too_short_to_mean_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        forbidden_in("text", ["Ada"])
