"""The diffusers door: IntrinsicLoRAPipeline."""
