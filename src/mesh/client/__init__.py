"""The client's side: channels that accept unmodified generated stubs and pick, per attempt, the instance to call.

Order of layers, outermost first: deadline, metrics and span of the call; retry; pick; breaker of the endpoint; span
of the attempt; wire. Retry stands above the pick and the breaker below it: otherwise a retry would meet the same
sick server.

Read `connect` first (the door), then `roster` (who may be called), `pool` (connections), `attempts` (the course of one
call), `call` and `streams` (its face). `blocking` is the same for threads.
"""
