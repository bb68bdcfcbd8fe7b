"""Clients that the bench compares: ours and those in Go, each a process of its own that takes the same orders."""

SERVICE = "users.v1.UserService"
"""What they all call."""
