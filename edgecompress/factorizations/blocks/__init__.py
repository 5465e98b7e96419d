"""Building blocks of the methods: kernels of dense layers, and the chains of small layers that replace dense layers."""
