"""Text to tokens and back: tokenizer, messages, chat template and the parser of a turn."""
