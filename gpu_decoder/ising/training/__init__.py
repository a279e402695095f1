"""Training of pre-decoder networks: labels from stim, their equivalence, the loop (torch)."""
