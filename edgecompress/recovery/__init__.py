"""Training that recovers accuracy after a network was compressed."""
