"""Settings for all tests."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each parallel worker: threads that wait for one another on busy cores cost more than they give.
    torch.set_num_threads(1)
