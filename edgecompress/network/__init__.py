"""The torch side of any network: batches in and out, its layers, its exported program, and how far two outputs are apart."""
