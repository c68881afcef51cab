"""Training: adapters and whole models on people's pictures; nano, from nothing, in `train.nano`."""
