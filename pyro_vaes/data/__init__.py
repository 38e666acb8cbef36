"""Data sets, splits and batches: tensors in, tensors out."""

from pyro_vaes.core.errors import DataError
from pyro_vaes.data.dataset import DataSet, load_data
from pyro_vaes.data.splits import Split, as_split, labelled_pseudo_inputs, pseudo_inputs

__all__ = [
    "DataError",
    "DataSet",
    "Split",
    "as_split",
    "labelled_pseudo_inputs",
    "load_data",
    "pseudo_inputs",
]
