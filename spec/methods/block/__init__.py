"""Block drafts, DFlash (arXiv 2602.06036) and DSpark (2607.05147): a few layers draft a whole block in one forward."""
