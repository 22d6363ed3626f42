"""Work: models, training, numbers and pictures. Computes and returns; never prints, never records."""
