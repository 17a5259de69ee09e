"""How a LoRA is trained: what is predicted from a batch, and what it is compared with."""

from .base import Method
from .single_step import OnePass, SingleStep

__all__ = ["Method", "OnePass", "SingleStep"]
