"""What holds for every test: no GPU is asked of the machine, and one core is enough."""

from __future__ import annotations

import os
import signal

import torch

# Triton reads this while it is imported, so it has to be said before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# A test must never reach the network; what looks like a hub id fails at once instead.
os.environ["HF_HUB_OFFLINE"] = "1"

torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore an interrupt, and so their
# children, some of which are interrupted on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)
