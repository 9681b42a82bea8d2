"""What holds for every test: no GPU is asked of the machine, and one core is enough."""

from __future__ import annotations

import os

import torch

# Triton reads this while it is imported, so it has to be said before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# A test must never reach the network; what looks like a hub id fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"

torch.set_num_threads(1)
