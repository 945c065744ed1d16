"""sgl-spec: trains speculative-decoding drafts for SGLang, from raw prompts to a proven and published draft.

Nothing is imported here: the tools image has no torch, and `spec.storage` or `spec.conversations` must load there.
"""

import logging

# At every import it says which of its kernels another torch than its own would have: torchtune wants that version, and
# nothing here uses them.
logging.getLogger("torchao").setLevel(logging.ERROR)
