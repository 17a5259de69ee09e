"""The ComfyUI nodes: `extension` lists them. What needs no ComfyUI (`packet`, `loras`) imports without it."""
