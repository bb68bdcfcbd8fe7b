"""Wraps a servicer's methods so that every call is timed, counted, traced, bounded and refused in one form.

Not grpc interceptors: those cannot see a request that does not parse, nor a response that does not serialize, and cost
more. The order, outermost first: account and deadline, parsing, the handler, serializing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from mesh.clock import Clock
from mesh.contract.descriptors import is_plumbing
from mesh.contract.policies import policies_of
from mesh.errors import SettingsError
from mesh.instance import check_service_name
from mesh.policy import DEFAULT_POLICY
from mesh.server.admission import Admission
from mesh.server.call import ServedCall, ServedMethod, TooLate, Unreadable, is_error
from mesh.server.errors import NOT_IMPLEMENTED
from mesh.server.inhand import CallsInHand
from mesh.server.load import LoadMeter

# Health watches and reflection have no end of their own and no contract with us.
_PLUMBING_TIMEOUT = 24 * 3600.0

_Handlers = Mapping[str, Any]


class Router(grpc.GenericRpcHandler):
    """Finds the wrapped handler of a method. Knows the names of the services and the calls being answered."""

    def __init__(self, servicers: Iterable[object], clock: Clock, admission: Admission | None = None) -> None:
        """admission: the door for unary calls of contracts; without one all get in."""
        self.in_hand = CallsInHand(clock)
        self.plumbing = CallsInHand(clock)
        """Those of health and reflection, which nobody waits for: callers watch the health of their instances."""
        self.services: list[str] = []
        self._meter = LoadMeter(clock)
        self._clock = clock
        self._admission = admission
        self._methods: dict[str, Any] = {}
        # One label for every name that nobody serves: a scanner must not be able to fill the metrics.
        unknown = ServedMethod("unknown", "unknown", DEFAULT_POLICY.timeout, clock, self.in_hand, streams=False)
        self._unknown = _unimplemented(unknown)
        for servicer in servicers:
            self.add(servicer)

    def add(self, servicer: object, alias: Callable[[str], str] = lambda service: service) -> None:
        """Serve a servicer's methods; `alias` renames its services. Raises SettingsError if it is no servicer."""
        for service, handlers in _collect(servicer).items():
            self._add_service(alias(service), handlers, servicer)

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method; of an unknown one, a handler that refuses."""
        return self._methods.get(handler_call_details.method, self._unknown)

    def close(self) -> None:
        """Stop the timers: no call is answered any more."""
        self.in_hand.close()
        self.plumbing.close()

    def _add_service(self, service: str, handlers: _Handlers, servicer: object) -> None:
        check_service_name(service)
        if service in self.services:
            raise SettingsError(f"{service} is served twice: give one servicer for each service")
        plumbing = is_plumbing(service)
        policies = {} if plumbing else policies_of(service)
        default = _PLUMBING_TIMEOUT if plumbing else DEFAULT_POLICY.timeout
        in_hand = self.plumbing if plumbing else self.in_hand
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            timeout = policies[path].timeout if path in policies else default
            streams = bool(handler.response_streaming)
            door = None if plumbing or not handler.unary_unary else self._admission
            method = ServedMethod(service, name, timeout, self._clock, in_hand, streams=streams, admission=door)
            self._methods[path] = _wrap(handler, method, servicer)
            if path in policies and policies[path].balancer.load_reports:
                method.meter = self._meter
        self.services.append(service)


class _Collector:
    """Stands in for a grpc server and keeps what generated code adds to it."""

    def __init__(self) -> None:
        self.found: dict[str, _Handlers] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Ignored: the same handlers come once more, by name."""

    def add_registered_method_handlers(self, service: str, handlers: _Handlers) -> None:
        self.found[service] = handlers


def _collect(servicer: object) -> Mapping[str, _Handlers]:
    """Call the generated add_…_to_server of every generated class that the servicer inherits from."""
    collector = _Collector()
    for kind in type(servicer).__mro__:
        add = getattr(sys.modules.get(kind.__module__), f"add_{kind.__name__}_to_server", None)
        if add is not None:
            add(servicer, collector)
    if not collector.found:
        name = type(servicer).__name__
        raise SettingsError(
            f"{name} serves nothing: give an instance of a class that inherits from a generated …Servicer"
            " (made by grpcio-tools 1.64 or later)"
        )
    return collector.found


def _wrap(handler: Any, method: ServedMethod, servicer: object) -> Any:
    behave = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if _is_inherited(method.name, servicer):
        return _unimplemented(method)
    whole = inspect.unwrap(behave)
    if not (inspect.iscoroutinefunction(whole) or inspect.isasyncgenfunction(whole)):
        raise SettingsError(f"{type(servicer).__name__}.{method.name} is a plain function: write `async def`")
    parse = handler.request_deserializer or bytes
    serialize = handler.response_serializer or bytes
    if not handler.response_streaming:
        kind = _stream_unary if handler.request_streaming else _unary_unary
        return kind(method, behave, parse, serialize)
    behave = _writer(behave) if inspect.isasyncgenfunction(whole) else behave
    kind = _stream_stream if handler.request_streaming else _unary_stream
    return kind(method, behave, parse, serialize)


def _is_inherited(name: str, servicer: object) -> bool:
    """Whether a method is still the generated one, which only says that nobody wrote it."""
    owner = next((k for k in type(servicer).__mro__ if name in vars(k)), None)
    return owner is not None and hasattr(sys.modules.get(owner.__module__), f"add_{owner.__name__}_to_server")


_Parse = Callable[[bytes], Any]
_Serialize = Callable[[Any], bytes]
_Behave = Callable[[Any, Any], Awaitable[Any]]


def _unary_unary(method: ServedMethod, behave: _Behave, parse: _Parse, serialize: _Serialize) -> Any:
    limiter = method.admission.limiter if method.admission is not None else None

    async def answer(request: bytes, context: Any) -> bytes:
        call = ServedCall(method, context)
        try:
            if call.refused is not None:
                raise TooLate
            if limiter is not None:
                # Few are in work: no question.
                if limiter.in_work < limiter.free_below:
                    limiter.begin()
                    call.is_in = True
                else:
                    await call.enter()
            try:
                message = parse(request)
            except Exception:
                raise Unreadable from None
            response = await behave(message, call)
            code = context.code()
            answered = b"" if code and is_error(code) else serialize(response)
            call.finish(code)
            return answered
        except BaseException as e:
            await call.fail(e)

    return grpc.unary_unary_rpc_method_handler(answer)


def _stream_unary(method: ServedMethod, behave: _Behave, parse: _Parse, serialize: _Serialize) -> Any:
    async def answer(requests: AsyncIterator[Any], context: Any) -> bytes:
        call = ServedCall(method, context)
        try:
            if call.refused is not None:
                raise TooLate
            response = await behave(requests, call)
            code = context.code()
            answered = b"" if code and is_error(code) else serialize(response)
            call.finish(code)
            return answered
        except BaseException as e:
            await call.fail(e)

    return grpc.stream_unary_rpc_method_handler(answer, request_deserializer=_readable(parse))


def _unary_stream(method: ServedMethod, behave: _Behave, parse: _Parse, serialize: _Serialize) -> Any:
    readable = _readable(parse)

    async def answer(request: bytes, context: Any) -> None:
        call = ServedCall(method, context)
        try:
            if call.refused is not None:
                raise TooLate
            await behave(readable(request), call)
            call.finish(context.code())
        except BaseException as e:
            await call.fail(e)

    return grpc.unary_stream_rpc_method_handler(answer, response_serializer=serialize)


def _stream_stream(method: ServedMethod, behave: _Behave, parse: _Parse, serialize: _Serialize) -> Any:
    async def answer(requests: AsyncIterator[Any], context: Any) -> None:
        call = ServedCall(method, context)
        try:
            if call.refused is not None:
                raise TooLate
            await behave(requests, call)
            call.finish(context.code())
        except BaseException as e:
            await call.fail(e)

    return grpc.stream_stream_rpc_method_handler(
        answer, request_deserializer=_readable(parse), response_serializer=serialize
    )


def _writer(generate: Callable[[Any, Any], AsyncIterator[Any]]) -> _Behave:
    """Turn an async generator into a coroutine that writes: cancelled, it is cancelled as a whole, in one task."""

    async def write(request: Any, call: ServedCall) -> None:
        async with aclosing(generate(request, call)) as responses:  # type: ignore[type-var]  # it is a generator
            async for response in responses:
                await call.write(response)

    return write


def _readable(parse: _Parse) -> _Parse:
    """Turn whatever a parser raises into Unreadable; the bytes come from a caller, so nothing of them is told."""

    def read(raw: bytes) -> Any:
        try:
            return parse(raw)
        except Exception:
            raise Unreadable from None

    return read


def _unimplemented(method: ServedMethod) -> Any:
    """Refuse at once; as a stream, so that it does not wait for a request that may never come."""

    async def refuse(_requests: AsyncIterator[Any], context: Any) -> None:
        call = ServedCall(method, context)
        await call.fail(replace(NOT_IMPLEMENTED))

    return grpc.stream_stream_rpc_method_handler(refuse)
