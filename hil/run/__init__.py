"""Drivers: one run from scenario to verdict."""
