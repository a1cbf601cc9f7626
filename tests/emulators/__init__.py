"""Real storage servers for tests and benchmarks, and a relay before them that makes faults.

Nothing in here knows the project's own way of reading storage: what these servers hold is put there, and looked at,
with the vendors' own libraries.
"""
