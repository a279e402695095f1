"""Stand-ins for hardware and its libraries: they show what our code does, nothing about a GPU."""
