"""What the mesh tells of itself: metrics (Prometheus), traces (OpenTelemetry) and logs (JSON, Elastic Common Schema).

Labels and attributes are bounded: services, methods, codes, states. Never a user's data, never a raw address from a
caller.
"""
