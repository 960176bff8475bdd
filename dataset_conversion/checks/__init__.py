"""Checks of an nnU-Net raw dataset: one kind of finding a file, found by its file name."""

from ._check import Report, check, mend
from ._finding import Severity
from ._report import print_report, write_report

__all__ = ["Report", "Severity", "check", "mend", "print_report", "write_report"]
