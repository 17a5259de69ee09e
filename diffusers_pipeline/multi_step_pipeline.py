"""Loader of `IntrinsicLoRAMultiStepPipeline` by path; see `pipeline.py`."""

from intrinsic_lora import IntrinsicLoRAMultiStepPipeline as IntrinsicLoRAMultiStepPipeline
