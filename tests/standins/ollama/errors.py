"""How a request to the Ollama stand-in fails."""


class ApiError(Exception):
    """A status and the text that stands under `error`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
