"""A loaded model in a process of its own, behind the interface of `engine`.

`child` is what runs there; all else is the parent's side, which never loads native code.
"""
