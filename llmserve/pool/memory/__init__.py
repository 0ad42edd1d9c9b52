"""How much memory a model will take, from its header alone. Pure, but for `budget`."""
