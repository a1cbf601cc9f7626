"""Measures listing and reading of object storage: against Azurite, through a relay that delays each request."""
