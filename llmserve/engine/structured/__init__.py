"""What an answer must match -> which tokens may come next, on llguidance.

Grammars come from strangers: what native code could not bear is refused here, before it sees it.
"""
