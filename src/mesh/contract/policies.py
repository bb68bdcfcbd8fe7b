"""Policies: how the calls of each method are treated, read from its contract.

Layers, the later one winning field by field: defaults (`mesh.policy`), the service's option, the method's option, the
operator's override from the store. `idempotent` and `has_request_id` come from the contract alone: no operator can make
a method safe to repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc
from google.protobuf import duration_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions, ServiceOptions
from google.protobuf.descriptor_pool import DescriptorPool

from grpcmesh.v1 import policy_pb2
from mesh.contract.descriptors import find_service, pool_of
from mesh.errors import ContractError
from mesh.policy import (
    DEFAULT_POLICY,
    Balancer,
    BalancerPolicy,
    BreakerMode,
    BreakerPolicy,
    HedgingPolicy,
    MethodPolicy,
    RetryPolicy,
)

# gRFC A6: more than five attempts count as five.
MAX_ATTEMPTS = 5
_MAX_TIMEOUT = 24 * 3600.0

_KINDS = {policy_pb2.BalancerPolicy.Kind.Value(f"KIND_{kind.value}"): kind for kind in Balancer}
_MODES = {policy_pb2.BreakerPolicy.Mode.Value(f"MODE_{mode.value}"): mode for mode in BreakerMode}
# Names of metadata as gRPC allows them; an empty one switches a service's key off for a method.
_METADATA = re.compile(r"[a-z0-9_.-]{0,64}")

_STATUS_CODES = frozenset(code.name for code in grpc.StatusCode) - {"OK"}


def policies_of(
    service: str, override: policy_pb2.Policy | None = None, pool: DescriptorPool | None = None
) -> dict[str, MethodPolicy]:
    """Return the policy of each method by its path; empty where the service's stubs are not imported.

    Raises ContractError if a policy asks for something that makes no sense.
    """
    found = find_service(service, pool)
    if found is None:
        return {}
    return {f"/{service}/{m.name}": _policy_of(found, m, override) for m in found.methods}


def policies_of_set(
    contract: bytes, service: str, override: policy_pb2.Policy | None = None
) -> dict[str, MethodPolicy]:
    """Return the same from a descriptor set, for a process that has no stubs of the service."""
    return policies_of(service, override, pool_of(contract))


def read_override(text: bytes) -> policy_pb2.Policy:
    """Parse an operator's override, protobuf JSON; raise ContractError in one sentence if it is none."""
    from google.protobuf import json_format  # few services have one, and clients begin sooner without

    try:
        return json_format.Parse(text, policy_pb2.Policy())
    except (json_format.ParseError, UnicodeDecodeError) as e:
        raise ContractError(f"this is no policy: {e}") from e


def merge(policy: MethodPolicy, layer: policy_pb2.Policy) -> MethodPolicy:
    """Return `policy` with every field that `layer` sets; raise ContractError where a value makes no sense."""
    if layer.HasField("timeout"):
        policy = policy._replace(timeout=_seconds(layer.timeout, "timeout", low=0.001, high=_MAX_TIMEOUT))
    if layer.HasField("retry"):
        policy = policy._replace(retry=_merge_retry(policy.retry, layer.retry))
    if layer.HasField("hedging"):
        policy = policy._replace(hedging=_merge_hedging(policy.hedging, layer.hedging))
    if layer.HasField("breaker"):
        policy = policy._replace(breaker=_merge_breaker(policy.breaker, layer.breaker))
    if layer.HasField("balancer"):
        policy = policy._replace(balancer=_merge_balancer(policy.balancer, layer.balancer))
    return policy


def _policy_of(
    service: ServiceDescriptor, method: MethodDescriptor, override: policy_pb2.Policy | None
) -> MethodPolicy:
    level = MethodOptions.FromString(method.GetOptions().SerializeToString()).idempotency_level
    request_id = method.input_type.fields_by_name.get("request_id")
    policy = DEFAULT_POLICY._replace(
        idempotent=level in (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS),
        has_request_id=request_id is not None and request_id.type == FieldDescriptor.TYPE_STRING,
    )
    for layer in (*_options(service, method), override):
        if layer is not None:
            policy = merge(policy, layer)
    # A service's key need not be in every request; a method's own does (see _options).
    if not _is_key(method.input_type, policy.balancer.hash_field):
        policy = policy._replace(balancer=policy.balancer._replace(hash_field=""))
    return policy


def _is_key(message: Descriptor, path: str) -> bool:
    """Whether `path` leads to one value in a request: not to a message, nor through or to a repeated field."""
    *through, last = path.split(".")
    for name in through:
        field = message.fields_by_name.get(name)
        if field is None or field.message_type is None or field.is_repeated:
            return False
        message = field.message_type
    field = message.fields_by_name.get(last)
    return field is not None and field.message_type is None and not field.is_repeated


def _options(service: ServiceDescriptor, method: MethodDescriptor) -> list[policy_pb2.Policy]:
    # A pool of its own knows the options as unknown fields; a trip over the wire makes them ours.
    of_service = ServiceOptions.FromString(service.GetOptions().SerializeToString())
    of_method = MethodOptions.FromString(method.GetOptions().SerializeToString())
    found = []
    if of_service.HasExtension(policy_pb2.service):
        found.append(of_service.Extensions[policy_pb2.service])
    if of_method.HasExtension(policy_pb2.method):
        own = of_method.Extensions[policy_pb2.method]
        key = own.balancer.hash_field
        if key and not _is_key(method.input_type, key):
            raise ContractError(
                f"{method.full_name}: hash_field {key!r} is no single value in {method.input_type.name}"
            )
        found.append(own)
    return found


def _merge_retry(retry: RetryPolicy, layer: policy_pb2.RetryPolicy) -> RetryPolicy:
    changes: dict[str, object] = {}
    if layer.HasField("max_attempts"):
        changes["max_attempts"] = min(max(layer.max_attempts, 1), MAX_ATTEMPTS)
    if layer.HasField("initial_backoff"):
        changes["initial_backoff"] = _seconds(layer.initial_backoff, "initial_backoff", low=0.001, high=60)
    if layer.HasField("max_backoff"):
        changes["max_backoff"] = _seconds(layer.max_backoff, "max_backoff", low=0.001, high=600)
    if layer.HasField("backoff_multiplier"):
        changes["backoff_multiplier"] = _within(layer.backoff_multiplier, "backoff_multiplier", 1, 100)
    if layer.retryable_status_codes:
        changes["codes"] = _codes(layer.retryable_status_codes, "retryable_status_codes")
    if layer.HasField("attempt_timeout"):
        value = _seconds(layer.attempt_timeout, "attempt_timeout", low=0.0, high=_MAX_TIMEOUT)
        changes["attempt_timeout"] = value if value == 0 else _within(value, "attempt_timeout", 0.001, _MAX_TIMEOUT)
    return retry._replace(**changes)  # type: ignore[arg-type]  # each value has its field's type by construction


def _merge_hedging(hedging: HedgingPolicy, layer: policy_pb2.HedgingPolicy) -> HedgingPolicy:
    changes: dict[str, object] = {}
    if layer.HasField("max_attempts"):
        changes["max_attempts"] = min(max(layer.max_attempts, 1), MAX_ATTEMPTS)
    if layer.HasField("hedging_delay"):
        changes["delay"] = _seconds(layer.hedging_delay, "hedging_delay", low=0.0, high=60)
    if layer.non_fatal_status_codes:
        changes["codes"] = _codes(layer.non_fatal_status_codes, "non_fatal_status_codes")
    if layer.HasField("follow_p95"):
        changes["follow_p95"] = layer.follow_p95
    return hedging._replace(**changes)  # type: ignore[arg-type]  # each value has its field's type by construction


# What may be written, and what 0 switches off.
_BREAKER_SHARES = (
    ("failure_rate", 0.01, 1.0),
    ("slow_call_rate", 0.01, 1.0),
    ("slow_call_factor", 1.5, 1000.0),
    ("outlier_failure_rate", 0.01, 1.0),
)
_BREAKER_TIMES = (
    ("open_for", 0.01, 3600.0),
    ("max_open_for", 0.01, 24 * 3600.0),
    ("window_time", 0.1, 3600.0),
    ("slow_call_duration", 0.001, 3600.0),
)
_SWITCHED_OFF = ("slow_call_factor", "outlier_failure_rate", "window_time", "slow_call_duration")


def _merge_breaker(breaker: BreakerPolicy, layer: policy_pb2.BreakerPolicy) -> BreakerPolicy:
    changes: dict[str, object] = {}
    for name, low, high in _BREAKER_SHARES:
        if layer.HasField(name):  # type: ignore[arg-type]  # names of fields, all of them
            value = getattr(layer, name)
            changes[name] = value if value == 0 and name in _SWITCHED_OFF else _within(value, name, low, high)
    for field in ("window", "minimum_calls", "consecutive_failures", "half_open_permits"):
        if layer.HasField(field):
            changes[field] = int(_within(getattr(layer, field), field, 1, 100_000))
    for name, low, high in _BREAKER_TIMES:
        if layer.HasField(name):  # type: ignore[arg-type]  # as above
            value = _seconds(getattr(layer, name), name, low=0.0, high=high)
            changes[name] = value if value == 0 and name in _SWITCHED_OFF else _within(value, name, low, high)
    if layer.mode:
        if layer.mode not in _MODES:
            raise ContractError(f"breaker.mode {layer.mode} is not known here: it may be of a later release")
        changes["mode"] = _MODES[layer.mode]
    if layer.HasField("fleet_probe"):
        changes["fleet_probe"] = layer.fleet_probe
    return breaker._replace(**changes)  # type: ignore[arg-type]  # each value has its field's type by construction


def _merge_balancer(balancer: BalancerPolicy, layer: policy_pb2.BalancerPolicy) -> BalancerPolicy:
    changes: dict[str, object] = {}
    if layer.kind:
        if layer.kind not in _KINDS:
            raise ContractError(f"balancer.kind {layer.kind} is not known here: it may be of a later release")
        changes["kind"] = _KINDS[layer.kind]
    for name in ("hash_field", "hash_metadata", "prefer_zone", "load_reports"):
        if layer.HasField(name):
            changes[name] = getattr(layer, name)
    if layer.HasField("hash_metadata") and not _METADATA.fullmatch(layer.hash_metadata):
        raise ContractError(f"hash_metadata: {layer.hash_metadata!r} is no name of a metadata entry")
    if layer.HasField("slow_start"):
        changes["slow_start"] = _seconds(layer.slow_start, "slow_start", low=0, high=3600)
    if layer.HasField("subset_size"):
        changes["subset_size"] = int(_within(layer.subset_size, "subset_size", 0, 100_000))
    return balancer._replace(**changes)  # type: ignore[arg-type]  # each value has its field's type by construction


def _codes(names: Iterable[str], field: str) -> frozenset[str]:
    unknown = sorted(set(names) - _STATUS_CODES)
    if unknown:
        raise ContractError(f"{field}: {unknown[0]!r} is no gRPC status code")
    return frozenset(names)


def _seconds(value: duration_pb2.Duration, name: str, *, low: float, high: float) -> float:
    return _within(value.seconds + value.nanos / 1e9, name, low, high)


def _within(value: float, name: str, low: float, high: float) -> float:
    if not low <= value <= high:
        raise ContractError(f"{name} is {value:g}: write a value from {low:g} to {high:g}")
    return value
