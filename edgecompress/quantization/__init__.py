"""Quantization in PyTorch: simulation of schemes on exported programs, GPTQ, mixed precision, calibration inputs."""
