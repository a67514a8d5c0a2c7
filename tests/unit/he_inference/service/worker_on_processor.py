"""The compute process with the processor in place of a GPU: a program of the tests, which no configuration names."""

from __future__ import annotations

import sys

import torch

from he_inference.engine import gpu
from he_inference.service import worker


def processor(number: int) -> torch.device:
    """Whatever the number."""
    return torch.device("cpu")


if __name__ == "__main__":
    gpu.cuda_device = processor
    sys.exit(worker.main())
