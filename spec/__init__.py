"""sgl-spec: trains speculative-decoding drafts for SGLang, from raw prompts to a proven and published draft.

Nothing is imported here: the tools image has no torch, and `spec.storage` or `spec.conversations` must load there.
"""
