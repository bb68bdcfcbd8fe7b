"""Policies: layers win in their order, safety comes from the contract alone, nonsense is refused."""

import pytest
from google.protobuf import descriptor_pb2

from grpcmesh.v1 import policy_pb2
from mesh.contract import descriptors, policies
from mesh.errors import ContractError
from mesh.policy import DEFAULT_POLICY, Balancer, BalancerPolicy, BreakerMode
from users.v1 import users_pb2_grpc  # noqa: F401  links the contract

USERS = "users.v1.UserService"
GET, CREATE, WATCH = (f"/{USERS}/{m}" for m in ("GetUser", "CreateUser", "WatchUsers"))


def override(text: bytes) -> policy_pb2.Policy:
    return policies.read_override(text)


def test_idempotency_and_request_ids_are_read_from_the_contract():
    found = policies.policies_of(USERS)
    assert found[GET].idempotent and not found[GET].has_request_id
    assert found[CREATE].has_request_id and not found[CREATE].idempotent


def test_the_methods_option_wins_over_the_services():
    found = policies.policies_of(USERS)
    assert (found[GET].timeout, found[WATCH].timeout) == (5.0, 3600.0)


def test_an_override_wins_over_both_and_leaves_the_rest():
    found = policies.policies_of(USERS, override(b'{"timeout": "1.5s", "retry": {"maxAttempts": 2}}'))
    assert found[WATCH].timeout == 1.5
    assert found[GET].retry.max_attempts == 2
    assert found[GET].retry.codes == {"UNAVAILABLE"}


def test_no_override_makes_a_method_safe_to_repeat():
    assert not policies.policies_of(USERS, override(b'{"retry": {"maxAttempts": 5}}'))[CREATE].idempotent


def test_more_than_five_attempts_count_as_five():
    assert policies.policies_of(USERS, override(b'{"retry": {"maxAttempts": 9}}'))[GET].retry.max_attempts == 5


def test_a_descriptor_set_says_the_same_as_linked_stubs():
    contract = descriptors.descriptor_set([USERS])
    assert policies.policies_of_set(contract, USERS) == policies.policies_of(USERS)


def test_a_service_that_nobody_linked_has_no_policies():
    assert policies.policies_of("nobody.v1.Unknown") == {}


def test_everything_that_an_override_says_of_retries_and_breakers_holds():
    retry = b'{"maxAttempts": 2, "initialBackoff": "1s", "maxBackoff": "2s", "backoffMultiplier": 3,'
    retry += b' "retryableStatusCodes": ["ABORTED"]}'
    breaker = b'{"failureRate": 0.25, "window": 7, "minimumCalls": 6, "consecutiveFailures": 4, "halfOpenPermits": 3,'
    breaker += b' "openFor": "9s"}'
    found = policies.policies_of(USERS, override(b'{"retry": %s, "breaker": %s}' % (retry, breaker)))[GET]
    told = found.retry
    assert (told.max_attempts, told.initial_backoff, told.max_backoff, told.backoff_multiplier) == (2, 1.0, 2.0, 3.0)
    assert told.codes == {"ABORTED"}
    broken = found.breaker
    assert (broken.failure_rate, broken.window, broken.minimum_calls) == (0.25, 7, 6)
    assert (broken.consecutive_failures, broken.half_open_permits, broken.open_for) == (4, 3, 9.0)


def test_everything_that_an_override_says_of_slow_calls_outliers_and_modes_holds():
    text = b'{"breaker": {"windowTime": "10s", "slowCallDuration": "2s", "slowCallRate": 0.9, "slowCallFactor": 7.5,'
    text += b' "outlierFailureRate": 0.4, "maxOpenFor": "60s", "fleetProbe": true}}'
    found = policies.policies_of(USERS, override(text))[GET].breaker
    assert (found.window_time, found.slow_call_duration, found.slow_call_rate) == (10.0, 2.0, 0.9)
    assert (found.slow_call_factor, found.outlier_failure_rate, found.max_open_for) == (7.5, 0.4, 60.0)
    assert found.fleet_probe
    off = b'{"breaker": {"slowCallFactor": 0, "outlierFailureRate": 0, "windowTime": "0s", "slowCallDuration": "0s"}}'
    found = policies.policies_of(USERS, override(off))[GET].breaker
    assert (found.slow_call_factor, found.outlier_failure_rate, found.window_time, found.slow_call_duration) == (0,) * 4


def test_every_mode_of_a_breaker_can_be_asked_for():
    for mode in BreakerMode:
        text = f'{{"breaker": {{"mode": "MODE_{mode.value}"}}}}'
        assert policies.policies_of(USERS, override(text.encode()))[GET].breaker.mode is mode


def test_what_an_override_leaves_out_stays():
    plain, told = (
        policies.policies_of(USERS, override(text))[GET].breaker for text in (b"{}", b'{"breaker": {"window": 7}}')
    )
    assert told == plain._replace(window=7)


def test_a_service_that_says_nothing_of_itself_has_the_defaults():
    contract = descriptor_pb2.FileDescriptorSet.FromString(descriptors.descriptor_set([USERS]))
    for file in contract.file:
        for service in file.service:
            service.ClearField("options")
            for method in service.method:
                method.ClearField("options")
    found = policies.policies_of_set(contract.SerializeToString(), USERS)[GET]
    assert (found.timeout, found.retry, found.idempotent) == (DEFAULT_POLICY.timeout, DEFAULT_POLICY.retry, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "no policy"),
        (b'{"timeot": "1s"}', "no policy"),
        (b"\xff", "no policy"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(ContractError, match=words):
        policies.read_override(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"timeout": "0s"}',
        b'{"retry": {"retryableStatusCodes": ["OK"]}}',
        b'{"retry": {"backoffMultiplier": 0.5}}',
        b'{"retry": {"initialBackoff": "-1s"}}',
        b'{"retry": {"backoffMultiplier": "NaN"}}',
        b'{"breaker": {"failureRate": 2}}',
        b'{"breaker": {"window": 0}}',
        b'{"breaker": {"openFor": "0s"}}',
        b'{"breaker": {"mode": 99}}',
        b'{"breaker": {"slowCallRate": 0}}',
        b'{"breaker": {"slowCallFactor": 1}}',
        b'{"breaker": {"windowTime": "0.01s"}}',
        b'{"breaker": {"slowCallDuration": "-1s"}}',
        b'{"balancer": {"kind": 99}}',
        b'{"balancer": {"slowStart": "-1s"}}',
        b'{"balancer": {"subsetSize": 1000000}}',
        b'{"balancer": {"hashMetadata": "X Tenant"}}',
    ],
)
def test_a_value_without_sense_is_refused_with_its_field(text):
    with pytest.raises(ContractError):
        policies.policies_of(USERS, override(text))


def test_every_balancer_can_be_asked_for():
    for kind in Balancer:
        text = f'{{"balancer": {{"kind": "KIND_{kind.value}", "slowStart": "30s", "preferZone": true}}}}'
        found = policies.policies_of(USERS, override(text.encode()))[GET].balancer
        assert found == BalancerPolicy(kind, slow_start=30.0, prefer_zone=True)


@pytest.mark.parametrize(
    ("path", "of_get", "of_create"),
    [
        ("id", "id", ""),
        ("user.email", "", "user.email"),
        ("user", "", ""),
        ("nothing.at.all", "", ""),
    ],
)
def test_a_services_key_is_that_of_the_methods_whose_request_has_it(path, of_get, of_create):
    found = policies.policies_of(USERS, override(f'{{"balancer": {{"hashField": "{path}"}}}}'.encode()))
    assert found[GET].balancer.hash_field == of_get
    assert found[CREATE].balancer.hash_field == of_create


def test_a_methods_own_key_must_be_in_its_request():
    contract = descriptor_pb2.FileDescriptorSet.FromString(descriptors.descriptor_set([USERS]))
    for file in contract.file:
        for service in file.service:
            for method in service.method:
                if method.name == "GetUser":
                    method.options.Extensions[policy_pb2.method].balancer.hash_field = "name"
    with pytest.raises(ContractError, match="hash_field 'name' is no single value in GetUserRequest"):
        policies.policies_of_set(contract.SerializeToString(), USERS)


def test_everything_that_an_override_says_of_hedging_and_of_attempts_holds():
    hedging = b'{"maxAttempts": 9, "hedgingDelay": "0.05s", "nonFatalStatusCodes": ["ABORTED"], "followP95": false}'
    text = b'{"retry": {"attemptTimeout": "0.5s"}, "hedging": %s}' % hedging
    found = policies.policies_of(USERS, override(text))[GET]
    told = found.hedging
    assert (told.max_attempts, told.delay, told.codes, told.follow_p95) == (5, 0.05, {"ABORTED"}, False)
    assert found.retry.attempt_timeout == 0.5


def test_an_operator_switches_hedging_and_the_timeout_of_attempts_off():
    text = b'{"hedging": {"maxAttempts": 0, "hedgingDelay": "0s"}, "retry": {"attemptTimeout": "0s"}}'
    found = policies.policies_of(USERS, override(text))[GET]
    assert (found.hedging.max_attempts, found.hedging.delay, found.retry.attempt_timeout) == (1, 0.0, 0.0)


def test_reads_are_hedged_by_their_contract_and_nothing_else_is():
    hedged = {path.rpartition("/")[2] for path, p in policies.policies_of(USERS).items() if p.hedging.max_attempts > 1}
    assert hedged == {"GetUser", "ListUsers", "BatchGetUsers"}


@pytest.mark.parametrize(
    "text",
    [
        b'{"hedging": {"hedgingDelay": "61s"}}',
        b'{"hedging": {"hedgingDelay": "-1s"}}',
        b'{"hedging": {"nonFatalStatusCodes": ["OK"]}}',
        b'{"retry": {"attemptTimeout": "0.0001s"}}',
        b'{"retry": {"attemptTimeout": "-1s"}}',
    ],
)
def test_nonsense_about_hedging_and_attempts_is_refused(text):
    with pytest.raises(ContractError):
        policies.policies_of(USERS, override(text))
