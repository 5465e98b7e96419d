"""The mathematics of low-rank forms on plain float64 tensors, independent of layers, models and files."""
