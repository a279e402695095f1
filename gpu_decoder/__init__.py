"""Decode library: knows no network, no trace, no scenario."""
