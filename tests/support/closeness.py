"""How near float results must be: bounds that follow from the computation, and so hold on every processor.

Instruction sets round differently: they take sums in another order and fuse products into them. What they share is the
size of one rounding, half a unit in the last place, and that a sum of n terms has at most n of them.
"""

import torch
from torch import Tensor

SUM = 200  # roundings of one layer: a sum of up to 200 terms, or a chain of as many operations
# Of about ten layers one after the other. On the tiny UNet 1.4e-4, where a LoRA scaled by 0.999 makes 3e-4, the wrong
# sign of one layer 3e-2, and rows in reverse order 0.4.
NETWORK = 10 * SUM
# Of the maps that the tiny Stable Diffusion draws, absolute. Its pictures reach 2 and are off by 1e-6 to 1e-5, eight
# to eighty roundings; its shortest normal is 0.01 long, and made a unit vector it is turned by 100 times that.
MAP_ERROR = 1e-3


def roundings(count: int, expected: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """Return what `count` roundings of a number as large as the largest of `expected` add up to."""
    return count * torch.finfo(dtype).eps / 2 * expected.abs().max().item()


def assert_rounded(got: Tensor, expected: Tensor, count: int = NETWORK) -> None:
    """Assert that `got` differs from `expected` by no more than `count` roundings of its largest element.

    Relative to the largest and not to each: a small element of a network's output is the difference of large numbers
    and has their rounding.
    """
    atol = roundings(count, expected, got.dtype)
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)
