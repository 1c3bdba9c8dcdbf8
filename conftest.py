"""Tests compute with one thread a process: the models are small, and pytest-xdist fills the cores."""

import torch

torch.set_num_threads(1)
