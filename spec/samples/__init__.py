"""From the target's answers to what the trainer reads: token ids, loss masks, packing, the draft's vocabulary.

    answers -> template (text) -> tokens (ids and mask) -> dataset (memory-mapped) -> packing (bins)

No torch is imported here.
"""
