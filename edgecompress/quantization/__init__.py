"""Quantization in PyTorch: schemes simulated on exported programs, weights rounded with compensation, calibration inputs."""
