"""Low-rank factorizations of one layer: factorize it, measure the error, and look up the methods."""

from edgecompress.factorizations.methods import METHODS, get_method, parse_options
from edgecompress.factorizations.protocol import Factorization, Moments
from edgecompress.factorizations.reconstruction_error import reconstruction_errors, relative_error
from edgecompress.factorizations.single_layer import FitWarning, factorize, refactorize
from edgecompress.network.factors import Factors

__all__ = [
    "METHODS",
    "Factorization",
    "Factors",
    "FitWarning",
    "Moments",
    "factorize",
    "get_method",
    "parse_options",
    "reconstruction_errors",
    "refactorize",
    "relative_error",
]
