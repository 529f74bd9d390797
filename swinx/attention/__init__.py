"""Window attention: one operation, several implementations.

This folder, `plans.py`, `windows.py` and `exports.py` can be copied into another package (docs/kernel.md): they import
one another by relative names, and nothing else of swinx.
"""

from .api import window_attention
from .backends import IMPLEMENTATIONS, AttentionImpl

__all__ = ["IMPLEMENTATIONS", "AttentionImpl", "window_attention"]
