"""Loader of `IntrinsicLoRAPipeline` by path: `custom_pipeline=` this folder, or a folder written by `save_pretrained`.

Diffusers copies only this file and uses the DiffusionPipeline class in it. The class is imported from the installed
package, so that `isinstance` holds however a pipeline was loaded.
"""

from intrinsic_lora import IntrinsicLoRAPipeline as IntrinsicLoRAPipeline
