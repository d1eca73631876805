"""What the contract suite asks, said once."""

LIGHT = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Switches the light",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}
LIGHT_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "on": {"type": "boolean"}},
    "required": ["colour", "on"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "one two three"}]
GREEDY = {"messages": MESSAGES, "temperature": 0}


def greedy(max_tokens: int, **more: object) -> dict[str, object]:
    """Return a chat without chance."""
    return {**GREEDY, "max_tokens": max_tokens, **more}


def text_of(chunks: list[dict]) -> str:
    """Return the text of a chat stream's chunks."""
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def reasons_of(chunks: list[dict]) -> list[str]:
    """Return the finish reasons of a stream's chunks."""
    return [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice.get("finish_reason")]
