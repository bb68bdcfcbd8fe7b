"""TLS: who gets in, what is said of bad files, and certificates that change under a running server."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.credentials import channel_credentials, fingerprint, server_credentials
from mesh.errors import SettingsError
from mesh.memory import MemoryStore
from mesh.server import Server
from mesh.settings import Settings, TLSFiles
from support.certificates import Authority
from support.echo import EchoRequest, EchoServicer, EchoServiceStub
from support.serving import error_of

FRESH = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own for each channel


def _server(tls: TLSFiles) -> Server:
    return Server(EchoServicer(), settings=Settings(drain=1.0, settle=0.0, tls=tls), store=MemoryStore())


async def _call(server: Server, credentials: grpc.ChannelCredentials | None, **arguments: Any) -> Any:
    target = str(server.endpoint)
    channel = (
        grpc.aio.secure_channel(target, credentials, options=FRESH)
        if credentials
        else grpc.aio.insecure_channel(target, options=FRESH)
    )
    async with channel:
        return await EchoServiceStub(channel).Unary(EchoRequest(text="x"), timeout=5, **arguments)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def test_a_caller_of_the_same_authority_is_let_in_and_everybody_else_is_not(
    authority: Authority, tmp_path: Path
) -> None:
    strangers = Authority(tmp_path / "strangers")
    stranger = strangers.issue("stranger")
    refused = {
        "no certificate": channel_credentials(TLSFiles(authority.ca)),
        "another authority's certificate": channel_credentials(TLSFiles(authority.ca, stranger.cert, stranger.key)),
        "an expired certificate": grpc.ssl_channel_credentials(
            authority.ca.read_bytes(),
            *(Path(str(f)).read_bytes() for f in _key_first(authority.issue("old", starts=-9, ends=-1))),
        ),
        "trusts another authority": channel_credentials(TLSFiles(strangers.ca, stranger.cert, stranger.key)),
        "plain text": None,
    }

    async def story() -> None:
        async with _server(authority.issue("server")) as server:
            good = channel_credentials(authority.issue("client"))
            assert (await _call(server, good)).text == "x"
            for what, credentials in refused.items():
                assert (await error_of(_call(server, credentials))).code() is grpc.StatusCode.UNAVAILABLE, what
            assert (await _call(server, good)).text == "x"

    asyncio.run(story())


def _key_first(files: TLSFiles) -> tuple[Path | None, Path | None]:
    return files.key, files.cert


def test_a_client_does_not_trust_a_server_of_another_name(authority: Authority) -> None:
    async def story() -> None:
        async with _server(authority.issue("server", host="10.1.2.3")) as server:
            error = await error_of(_call(server, channel_credentials(authority.issue("client"))))
            assert error.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_callers_without_a_certificate_can_be_admitted(authority: Authority) -> None:
    async def story() -> None:
        server = grpc.aio.server()
        port = server.add_secure_port(
            "127.0.0.1:0", server_credentials(authority.issue("server"), require_client=False)
        )
        await server.start()
        credentials = channel_credentials(TLSFiles(authority.ca))
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            error = await error_of(channel.unary_unary("/a.B/C")(b"", timeout=5))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)

    asyncio.run(story())


def _replace(old: TLSFiles, new: TLSFiles) -> None:
    for target, source in ((old.cert, new.cert), (old.key, new.key)):
        assert target is not None
        assert source is not None
        draft = target.with_suffix(".draft")
        shutil.copy(source, draft)
        os.replace(draft, target)


async def _shown(server: Server, authority: Authority, client: TLSFiles) -> str:
    """The name in the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    assert client.cert is not None
    context.load_cert_chain(client.cert, client.key)
    context.set_alpn_protocols(["h2"])
    endpoint = server.endpoint
    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return str(dict(pair[0] for pair in certificate["subject"])["commonName"])


def test_certificates_change_under_a_running_server_and_no_call_fails(authority: Authority, tmp_path: Path) -> None:
    async def story() -> None:
        files = authority.issue("server")
        client = authority.issue("client")
        credentials = channel_credentials(client)
        calls = 0
        async with (
            _server(files) as server,
            grpc.aio.secure_channel(str(server.endpoint), credentials, options=FRESH) as steady,
        ):
            for number in range(10):
                _replace(files, authority.issue(f"renewed-{number}", folder=tmp_path / "new"))
                for _ in range(5):
                    await asyncio.gather(
                        _call(server, credentials), EchoServiceStub(steady).Unary(EchoRequest(), timeout=5)
                    )
                    calls += 2
                assert await _shown(server, authority, client) == f"renewed-{number}"
        assert calls == 100

    asyncio.run(story())


@pytest.mark.parametrize("broken", ["half a certificate", "another key", "expired", "gone", "no PEM"])
def test_a_replacement_that_cannot_be_used_is_logged_and_the_old_one_stays(
    broken: str, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(files: TLSFiles) -> None:
        assert files.cert is not None
        assert files.key is not None
        if broken == "half a certificate":
            files.cert.write_bytes(files.cert.read_bytes()[:200])
        elif broken == "another key":
            shutil.copy(str(authority.issue("other").key), files.key)
        elif broken == "expired":
            _replace(files, authority.issue("late", starts=-3, ends=-1, folder=tmp_path / "late"))
        elif broken == "gone":
            files.cert.unlink()
        else:
            files.key.write_bytes(b"\x00\xff not PEM")

    async def story() -> None:
        files = authority.issue("server")
        client = authority.issue("client")
        credentials = channel_credentials(client)
        async with _server(files) as server:
            spoil(files)
            for _ in range(3):
                assert (await _call(server, credentials)).text == "x"
            assert await _shown(server, authority, client) == "server"
            _replace(files, authority.issue("mended", folder=tmp_path / "mended"))
            assert (await _call(server, credentials)).text == "x"
            assert await _shown(server, authority, client) == "mended"

    with caplog.at_level(logging.INFO, logger="mesh.credentials"):
        asyncio.run(story())
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith("kept the certificate before: ")


def test_what_is_wrong_with_the_files_is_one_sentence_that_names_them(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("server"), authority.issue("other")
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_bytes(b"\xff\x00")
    wrong = {
        "cannot read .*missing.pem: No such file": TLSFiles(authority.ca, tmp_path / "missing.pem", good.key),
        "server.pem and .*other.key do not go together": TLSFiles(authority.ca, good.cert, other.key),
        "rubbish.pem holds no PEM certificate": TLSFiles(rubbish, good.cert, good.key),
        "rubbish.pem and .* do not go together": TLSFiles(authority.ca, rubbish, good.key),
        "expired.pem expired on 2": authority.issue("expired", starts=-9, ends=-2),
        "tomorrow.pem is not valid before 2": authority.issue("tomorrow", starts=1, ends=2),
        "a server needs a certificate": TLSFiles(authority.ca),
    }
    for sentence, files in wrong.items():
        with pytest.raises(SettingsError, match=sentence) as told:
            server_credentials(files)
        assert "\n" not in str(told.value)


def test_a_fingerprint_changes_with_any_of_the_files_and_only_then(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("server")
    before = fingerprint(files)
    assert fingerprint(files) == before
    _replace(files, authority.issue("next", folder=tmp_path / "next"))
    after = fingerprint(files)
    assert after != before
    os.utime(authority.ca, (1, 1))
    assert fingerprint(files) != after
    authority.ca.unlink()
    assert fingerprint(files) != after
