"""The reference service: users.v1.UserService, kept in SQLite or PostgreSQL. Written to be copied from.

`servicer` is the face to callers, `rules` and `writes` decide, `store` is the port to where users are kept, and
`database` opens one of its three implementations by URL. `python -m usersvc` serves it on a mesh.
"""
