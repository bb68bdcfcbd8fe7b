from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.errors import SettingsError
from mesh.telemetry import metrics
from mesh.telemetry.pages import serve_metrics


def scrape(address: str) -> dict[str, float]:
    with urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {f"{s.name}{sorted(s.labels.items())}": s.value for f in families for s in f.samples}


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":0", "localhost:0"])
def test_the_page_shows_what_was_counted(address: str) -> None:
    page = serve_metrics(address)
    try:
        key = "mesh_client_calls_total[('code', 'OK'), ('method', 'Get'), ('service', 'pages.v1.Service')]"
        before = scrape(page.address).get(key, 0)
        metrics.CLIENT_CALLS.labels("pages.v1.Service", "Get", "OK").inc(3)
        assert scrape(page.address)[key] == before + 3
    finally:
        page.close()


def test_without_a_host_the_page_is_on_loopback_only() -> None:
    page = serve_metrics(":0")
    page.close()
    assert page.address.startswith("127.0.0.1:")


def test_a_port_that_is_taken_is_told_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            SettingsError, match=r"^MESH_METRICS: cannot serve metrics on .*in use; choose another address$"
        ):
            serve_metrics(address)


@pytest.mark.parametrize("address", ["", "9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1", "h:１"])
def test_what_is_no_address_is_told_in_one_sentence(address: str) -> None:
    with pytest.raises(SettingsError, match="write host:port"):
        serve_metrics(address)


def test_closing_frees_the_port() -> None:
    page = serve_metrics("127.0.0.1:0")
    page.close()
    again = serve_metrics(page.address)
    assert again.address == page.address
    again.close()
