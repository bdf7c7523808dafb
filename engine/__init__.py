"""The engine: models in, videos out. See docs/architecture.md.

Importing it quiets what three libraries say, while they are imported, of parts of theirs that
nothing here uses (torchao's own attention kernels, its enums, diffusers' quantiser).
"""

import logging

for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
    logging.getLogger(_name).setLevel(logging.ERROR)
