"""Formats without complex numbers refuse a program that computes them by the name of the op and its layer."""

import pytest
import torch
from torch import nn

from converters.shared.programs import check_real
from edgecompress.errors import UnsupportedError
from edgecompress.network.exported import to_program


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.view_as_real(torch.fft.rfft(x)).flatten(1)


def test_a_transform_is_refused_by_its_op_and_layer():
    program = to_program(nn.Sequential(nn.Linear(8, 8), Spectrum()), (torch.zeros(1, 8),))
    with pytest.raises(UnsupportedError, match=r"^tflite: 1: aten\.fft_rfft makes complex numbers, .*; compute it by convolutions with"):
        check_real(program, "tflite")


def test_real_numbers_pass():
    check_real(to_program(nn.Linear(8, 8), (torch.zeros(1, 8),)), "tflite")
