"""A draft as SGLang loads it: written, read back, and refused by name where it is damaged."""
