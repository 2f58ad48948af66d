"""The HTTP service around a registered student.

A request's way: `app` (routes) -> `uploads` (bodies within the limits) -> `engine` (decoded in
threads, answered together by one thread) -> JSON. `keeper` follows the alias, `telemetry` counts,
`server` listens.
"""
