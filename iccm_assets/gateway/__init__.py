"""The HTTP gateway: routing, models, request spool, metrics and supervision of its processes."""
