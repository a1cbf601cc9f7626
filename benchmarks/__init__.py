"""Benchmarks: loads over real HTTP on a real service and a real PostgreSQL. Nothing in the product imports this."""
