"""The ComfyUI nodes: `extension` lists them. What needs no ComfyUI (`photo_maps`, `loras`) imports without it."""
