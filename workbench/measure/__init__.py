"""What quantization does to a model, as numbers: calibration, per-matrix errors, one matrix opened."""
