"""The simulated device: circuits by family, noise, batches of shots."""
