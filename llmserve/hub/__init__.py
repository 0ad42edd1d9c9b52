"""Where the weights are: on disk, in a package, at a hub. Downloads only when told to.

Never parses what it fetches.
"""
