"""What people are told of a spool: figures, and how they look on a terminal, in a pipe, as JSON.

Everything here only reads. What comes from strangers, names of files and a provider's words, is
made harmless before it is shown (`words.safe`).
"""
