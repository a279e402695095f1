"""Runtimes that execute a pre-decoder model, behind one protocol."""
