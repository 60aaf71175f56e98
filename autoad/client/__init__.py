"""Talking to an autoad server; imports neither PyTorch nor Ray."""

from __future__ import annotations

from autoad.client._connection import Connection

__all__ = ["Connection"]
