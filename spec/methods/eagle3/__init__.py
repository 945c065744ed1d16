"""EAGLE-3 (arXiv 2503.01840): one decoder layer over three of the target's hidden states, drafting token by token."""
