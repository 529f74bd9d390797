"""Window attention: one operation, several implementations."""

from swinx.attention.api import IMPLEMENTATIONS, AttentionImpl, window_attention

__all__ = ["IMPLEMENTATIONS", "AttentionImpl", "window_attention"]
