"""The ways in which people lay out what a model is to learn, one module each."""
