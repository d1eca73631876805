"""The echo engine: says the last words it was told, again and again."""
