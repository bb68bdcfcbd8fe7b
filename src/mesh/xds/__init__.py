"""xDS as pure machines: what is known of the mesh becomes messages for Envoy and for gRPC's own xDS client.

`snapshot` says what a client should hold, `stream` says what is sent on one ADS stream and when, `retention` says which
instances are still believed in; the other modules build one message each. Nothing here waits, opens a connection or
reads a clock. Needs the extra `controlplane` (xds-protos). The loops are in `mesh.controlplane`.
"""
