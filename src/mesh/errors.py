"""What can go wrong, in words: the errors that `mesh` raises and the one that a servicer raises to refuse a call.

An error has a kind, a sentence for people that says what to do, and facts for programs. How a `Refusal` travels as
google.rpc.Status is `mesh.server.errors`; what a failed call tells its caller is `mesh.client.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message


class MeshError(Exception):
    """Anything that this library raises by itself. Its text is one sentence for people."""


class SettingsError(MeshError):
    """A setting is missing or wrong; the text says which and what to write instead."""


class InvalidName(MeshError, ValueError):
    """A service or instance name that is not allowed."""


class RecordError(MeshError, ValueError):
    """A registration that cannot be read; it is skipped and counted, never fatal."""


class ContractError(MeshError, ValueError):
    """A contract or a policy that cannot be used; the text says which part and why."""


class StoreError(MeshError):
    """The store of registrations did not do what was asked."""


class StoreUnavailable(StoreError):
    """No member of the store could be reached in time. Worth another try, for ever."""


class StoreDenied(StoreError):
    """The store refused who we are. Another try helps only after somebody changed the credentials."""


class LeaseLost(StoreError):
    """The lease has expired or was revoked, and every key under it is gone."""


class DuplicateInstance(StoreError):
    """Another living process is registered under the same service and instance id."""


class Compacted(StoreError):
    """The revision asked for has been compacted away; read the whole prefix again.

    `revision` is the oldest one still known.
    """

    def __init__(self, revision: int) -> None:
        super().__init__(f"the history before revision {revision} was compacted away")
        self.revision = revision


@dataclass(eq=False)
class Refusal(MeshError):
    """Raised by a servicer to answer a call with an error that programs can read.

    code: the gRPC status code.
    message: a sentence that says what to do. It reaches the caller: no secrets, no SQL, no stack.
    reason: ErrorInfo.reason, in CAPITALS, stable for ever, e.g. "USER_NOT_FOUND".
    domain: ErrorInfo.domain, e.g. "users.v1".
    facts: ErrorInfo.metadata.
    details: further google.rpc messages (BadRequest, ResourceInfo, RetryInfo).
    is_final: no other attempt would fare better, now and at any instance; clients and the edge then make none.
    """

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    facts: Mapping[str, str] = field(default_factory=dict)
    details: Sequence[Message] = ()
    is_final: bool = False

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"
