"""The recipe of the bundled model: generated text, tokenizer, training and held-out evaluation."""
