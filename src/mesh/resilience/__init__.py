"""Machines that decide how a call survives: which failures say what (`outcome`), when to try again (`retry`), how
much of that is affordable (`budget`), and when to leave an endpoint alone (`breaker`).

Pure: the time and every draw are arguments. Nothing here waits, sends, or knows gRPC's channels.
"""
