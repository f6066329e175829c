"""The HTTP edge: application, routes, protocol."""
