"""One loaded model: from a request to the events of its answer.

`engine` is the whole, `loading` makes it, `interface` is what others see of it. Knows one model: no
names, no pool, no HTTP, no config file.
"""
