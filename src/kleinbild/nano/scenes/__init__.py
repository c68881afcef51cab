"""nano's world: sprites on backgrounds at fixed places, the sentences about them, and the oracle that checks pictures.

One world serves training, evaluation and tests, so a rule about it lives in one place. No torch here.
"""
