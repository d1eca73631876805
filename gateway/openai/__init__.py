"""OpenAI's dialect: what requests, errors, models and streams look like; pure."""
