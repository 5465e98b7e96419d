"""Planning: choose a method and a rank for each layer, so that the network keeps its budgets at the least loss."""
