"""Pretraining an encoder on images, without their masks."""
