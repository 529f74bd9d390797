"""Swin Transformer encoders for segmentation_models_pytorch: full pyramid, exact dilation, any image size.

Importing registers the encoders, so that `smp.DeepLabV3Plus(encoder_name="swinx_b")` works.
"""

from swinx.attention import window_attention
from swinx.checkpoints import load_checkpoint
from swinx.config import SwinConfig
from swinx.encoder import LevelInfo, SwinXEncoder
from swinx.models import parameter_groups, set_attention, set_output_stride
from swinx.registry import get_preprocessing_fn, list_encoders, register_encoder, register_variants
from swinx.sharing import from_pretrained, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "LevelInfo",
    "SwinConfig",
    "SwinXEncoder",
    "from_pretrained",
    "get_preprocessing_fn",
    "list_encoders",
    "load_checkpoint",
    "parameter_groups",
    "register_encoder",
    "save_pretrained",
    "set_attention",
    "set_output_stride",
    "window_attention",
]

register_variants()
