"""The path from a slot in GPU memory to the answer of the network, without the host.

Thin: kernels in ``kernels.cu`` (each with a numpy twin in ``twin``), the CUDA driver through ctypes
(``driver``), receive memory, captured graphs. Nothing here has run on a GPU; what is checked
instead, and how, stands in docs/predecoder.md.
"""
