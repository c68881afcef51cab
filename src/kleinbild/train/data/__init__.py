"""Pictures, captions and references that a model is trained on: found, checked, and encoded once."""
