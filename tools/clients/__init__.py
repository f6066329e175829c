"""Clients: SDKs, gateways, agents and harnesses, run unchanged against a served ensemble."""
