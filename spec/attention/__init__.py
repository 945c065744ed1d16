"""Attention that every method shares: flash with its log-sum-exp over documents, and the exact merge with the rest."""
