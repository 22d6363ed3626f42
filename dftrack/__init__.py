"""dftrack: train, search, judge and release CNNs that tell deepfake faces from real ones."""

__version__ = "0.1.0"
