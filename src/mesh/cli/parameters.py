"""What options and arguments may be, beyond what click knows."""

from __future__ import annotations

from typing import Any

import click

from mesh.errors import InvalidName
from mesh.instance import Endpoint, check_service_name


class Address(click.ParamType[Endpoint]):
    """host:port."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Read an address, or refuse it with what to write."""
        try:
            return value if isinstance(value, Endpoint) else Endpoint.parse(value)
        except InvalidName as e:
            self.fail(str(e), param, ctx)


class ServiceName(click.ParamType[str]):
    """A proto full name."""

    name = "service"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Accept a proto full name."""
        try:
            return check_service_name(value)
        except InvalidName as e:
            self.fail(str(e), param, ctx)
