"""The rack: one description of its stages, two executors of it."""
