"""Window attention: one operation, several implementations."""

from swinx.attention.api import window_attention
from swinx.attention.backends import IMPLEMENTATIONS, AttentionImpl

__all__ = ["IMPLEMENTATIONS", "AttentionImpl", "window_attention"]
