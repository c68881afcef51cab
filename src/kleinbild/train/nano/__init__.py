"""Trains nano: its sprites, tokenizer, autoencoder, flow model and few-step student, and their export."""
