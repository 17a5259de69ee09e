"""Load `IntrinsicLoRAPipeline` by path: `custom_pipeline=` this folder, or from a folder of `save_pretrained`.

Diffusers copies this one file elsewhere and takes the DiffusionPipeline class it finds in it: that of the installed
package, so that `isinstance` holds whichever way a pipeline was loaded.
"""

from intrinsic_lora import IntrinsicLoRAPipeline as IntrinsicLoRAPipeline
