"""The mathematics of low-rank forms, on plain float64 tensors: no layer, no model, no file is known here."""
