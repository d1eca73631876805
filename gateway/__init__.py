"""The front door: OpenAI's API for applications, forwarded to the engines that the controller's routes name."""
