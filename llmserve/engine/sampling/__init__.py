"""Logits -> a token for each row, and log probabilities. Pure numpy."""
