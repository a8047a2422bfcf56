"""Networks that diffusers does not give, and where the native U-Net is built."""
