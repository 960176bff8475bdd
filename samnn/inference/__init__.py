"""Prediction: nnU-Net's algorithm, batched, in bounded memory."""

from .predictor import BatchedPredictor

__all__ = ["BatchedPredictor"]
