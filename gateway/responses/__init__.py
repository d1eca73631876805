"""OpenAI's responses API in front of any engine that chats."""
