"""What this machine offers: cores, memory, quotas. The only room that asks the system for them.

Knows nothing of models. What cannot be read has a sound fallback: a request never fails for it.
"""
