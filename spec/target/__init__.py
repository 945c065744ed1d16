"""The frozen target: its families, loading, sharding, staging, and the hidden states that a draft reads."""
