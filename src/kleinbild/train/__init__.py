"""Training: the world's sprites and latents, the autoencoder, the flow model, the few-step student, evaluation."""
