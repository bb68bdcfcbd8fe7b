"""Machines that choose the endpoint of an attempt. Pure: no clock, no chance of their own, no connection."""
