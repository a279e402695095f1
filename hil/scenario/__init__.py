"""Scenario files: model, loader with positions, rules."""
