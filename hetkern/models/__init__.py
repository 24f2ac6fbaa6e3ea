"""Language models and classifiers to train with hetkern's kernels: one file a model."""

from hetkern.models.gpt import GPT, GPTShape
from hetkern.models.kernels import Kernels, choose_kernels
from hetkern.models.rnn_classifier import RNNClassifier
from hetkern.models.rnn_lm import RNNLM, RNNShape
from hetkern.models.transformer_classifier import TransformerClassifier

__all__ = [
    "GPT",
    "RNNLM",
    "GPTShape",
    "Kernels",
    "RNNClassifier",
    "RNNShape",
    "TransformerClassifier",
    "choose_kernels",
]
