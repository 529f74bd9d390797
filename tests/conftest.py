"""Settings for all tests."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each parallel worker: threads that wait for one another on busy cores cost more than they give.
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU, slowly; to be set before they are imported
