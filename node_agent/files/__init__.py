"""The node's files of models: the store, and how files come into it."""
