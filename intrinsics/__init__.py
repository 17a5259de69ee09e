"""The core: what each intrinsic means, how it is stored, and the files around it. No diffusers, no peft."""
