"""What methods are built of: dense layers as kernels and back, and the chains of small layers that stand in for them."""
