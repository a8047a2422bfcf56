"""Tests run on one thread each, without network, also in the processes they start."""

from __future__ import annotations

import os

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", CUDA_VISIBLE_DEVICES="", COLUMNS="120"
)

import torch

torch.set_num_threads(1)
