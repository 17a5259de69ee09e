"""Diffusers pipelines for intrinsic maps."""
