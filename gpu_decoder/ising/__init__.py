"""The Ising family: memory circuits, pre-decoder networks and the pipeline around them."""
