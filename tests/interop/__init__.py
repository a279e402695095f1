"""Interoperation with Linux rdma_rxe in a virtual machine."""

from __future__ import annotations
