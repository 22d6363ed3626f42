"""Material: from image files to batches."""
