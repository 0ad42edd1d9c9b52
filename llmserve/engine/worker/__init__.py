"""The thread that computes with the model: takes what is submitted, steps, reports.

The only caller of the runtime's context, and the only writer of sequences.
"""
