"""Lets ComfyUI run with a CPU build of torch beside the CUDA builds of torchvision and torchaudio.

The package index has only CUDA builds of the latter two. Their compiled parts do not load without CUDA, and then their
Python parts, which are all that ComfyUI needs here, stop at import. Where the compiled parts do load, nothing changes.
Put this folder on PYTHONPATH.
"""

import sys
from importlib.machinery import PathFinder


def _declare_operators(extension):
    """torchvision registers shape functions for two operators that its compiled part would have declared."""
    if not extension._has_ops():
        import torch

        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _tolerate_missing_cuda(utils):
    """torchaudio takes a library that is absent for an optional one, but one that does not load for an error."""
    load = utils._load_lib

    def load_if_possible(lib):
        try:
            return load(lib)
        except OSError:
            return False

    utils._load_lib = load_if_possible


_AFTER = {"torchvision.extension": _declare_operators, "torchaudio._extension.utils": _tolerate_missing_cuda}


class _Finder:
    """Runs one of the functions above right after the module it is about was imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _AFTER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_then_mend(module):
            execute(module)
            _AFTER[name](module)

        spec.loader.exec_module = execute_then_mend
        return spec


sys.meta_path.insert(0, _Finder)
