"""The steps of a run: one table, the context that they share, and the runner that orders and reuses them."""
