"""What tests share: scripts called here or in processes, a net of devices, solutions of samplers."""
