"""Seeded generators of a small world for each system: the embedded environment's data."""
