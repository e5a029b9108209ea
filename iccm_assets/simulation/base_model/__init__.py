"""The packaged model: tokenizer, pretraining from scratch, and a degraded copy."""
