"""Text of strangers, made fit to travel.

Pure. Called wherever a model's, a server's or a file system's words go into a message or a database.
"""


def sendable(text: str) -> str:
    """Return `text` with what neither protobuf nor PostgreSQL takes, lone surrogates and NUL, as question marks."""
    return text.replace("\x00", "?").encode("utf-8", "replace").decode()
