"""The contract as configuration: what descriptors say of a service, and how they travel.

`descriptors` turns linked stubs into one set of bytes with a digest; `policies` reads from descriptors how calls are
treated. Pure: the pool is an argument, and nothing here opens a file or a connection.
"""
