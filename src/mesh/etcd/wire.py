"""etcd's v3 API as this package uses it: the methods' paths, and one small builder per request.

The messages are `grpcmesh.etcd.v3`, with etcd's field numbers; the paths name etcd's own services. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from grpcmesh.etcd.v3 import etcd_pb2 as pb
from mesh.store import Entry

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """One method of etcd: where it is called and how its messages become bytes."""

    path: str
    encode: Callable[[Q], bytes]
    decode: Callable[[bytes], A]


RANGE: Method[pb.RangeRequest, pb.RangeResponse] = Method(
    "/etcdserverpb.KV/Range", pb.RangeRequest.SerializeToString, pb.RangeResponse.FromString
)
PUT: Method[pb.PutRequest, pb.PutResponse] = Method(
    "/etcdserverpb.KV/Put", pb.PutRequest.SerializeToString, pb.PutResponse.FromString
)
DELETE: Method[pb.DeleteRangeRequest, pb.DeleteRangeResponse] = Method(
    "/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest.SerializeToString, pb.DeleteRangeResponse.FromString
)
TXN: Method[pb.TxnRequest, pb.TxnResponse] = Method(
    "/etcdserverpb.KV/Txn", pb.TxnRequest.SerializeToString, pb.TxnResponse.FromString
)
WATCH: Method[pb.WatchRequest, pb.WatchResponse] = Method(
    "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
)
GRANT: Method[pb.LeaseGrantRequest, pb.LeaseGrantResponse] = Method(
    "/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest.SerializeToString, pb.LeaseGrantResponse.FromString
)
REVOKE: Method[pb.LeaseRevokeRequest, pb.LeaseRevokeResponse] = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest.SerializeToString, pb.LeaseRevokeResponse.FromString
)
KEEP_ALIVE: Method[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse] = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive",
    pb.LeaseKeepAliveRequest.SerializeToString,
    pb.LeaseKeepAliveResponse.FromString,
)
AUTHENTICATE: Method[pb.AuthenticateRequest, pb.AuthenticateResponse] = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest.SerializeToString, pb.AuthenticateResponse.FromString
)

_COMPARE_CREATE_REVISION = 1
PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


def range_end(prefix: bytes) -> bytes:
    """Return the first key after every key with this prefix; b"\\0", "to the very end", where there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


def entry_of(kv: pb.KeyValue) -> Entry:
    """Read a key and its value. A key that is no UTF-8 keeps its odd bytes as escapes and harms nobody."""
    return Entry(key_of(kv), kv.value, kv.lease, kv.mod_revision)


def key_of(kv: pb.KeyValue) -> str:
    """Read a key's name."""
    return kv.key.decode("utf-8", "backslashreplace")


def range_request(key: str) -> pb.RangeRequest:
    """Read one key."""
    return pb.RangeRequest(key=key.encode())


def delete_request(key: str) -> pb.DeleteRangeRequest:
    """Delete one key."""
    return pb.DeleteRangeRequest(key=key.encode())


def list_request(prefix: str) -> pb.RangeRequest:
    """Read everything under a prefix."""
    return pb.RangeRequest(key=prefix.encode() or b"\0", range_end=range_end(prefix.encode()))


def put_request(key: str, value: bytes, lease: int) -> pb.PutRequest:
    """Set a key."""
    return pb.PutRequest(key=key.encode(), value=value, lease=lease)


def put_if_absent_request(key: str, value: bytes, lease: int) -> pb.TxnRequest:
    """Set a key where there is none; read it where there is one."""
    return pb.TxnRequest(
        compare=[pb.Compare(target=_COMPARE_CREATE_REVISION, key=key.encode(), create_revision=0)],
        success=[pb.RequestOp(request_put=put_request(key, value, lease))],
        failure=[pb.RequestOp(request_range=range_request(key))],
    )


def watch_request(prefix: str, start: int) -> pb.WatchRequest:
    """Begin a watch of everything under a prefix, from a revision on."""
    create = pb.WatchCreateRequest(
        key=prefix.encode() or b"\0",
        range_end=range_end(prefix.encode()),
        start_revision=start,
    )
    return pb.WatchRequest(create_request=create)
