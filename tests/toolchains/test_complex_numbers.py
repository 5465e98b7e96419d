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


class Direct(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


def test_outside_of_layers_the_line_of_the_source_is_named():
    with pytest.raises(UnsupportedError, match=r"^tflite: test_complex_numbers\.py:\d+: aten\.fft_rfft makes complex numbers"):
        check_real(to_program(Direct(), (torch.zeros(1, 8),)), "tflite")


class Constant(nn.Module):
    def forward(self, x):
        return x + torch.view_as_real(torch.polar(torch.ones(4), torch.arange(4.0))).flatten()


def test_complex_constants_pass():
    check_real(to_program(Constant(), (torch.zeros(1, 8),)), "tflite")


def test_real_numbers_pass():
    check_real(to_program(nn.Linear(8, 8), (torch.zeros(1, 8),)), "tflite")
