"""`slice run`."""

from typing import Annotated

import typer

from cli import chat, exits, reach, starting
from cli.invocation import Invocation
from cli.openai_door import ChatOptions
from cli.options import DurationOption, Output, seconds
from cli.readiness import NotServing, told
from core.errors import Failure


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model, deployment or alias.")],
    prompt: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="One question.")] = None,
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, max=2, help="0 is steady, 2 is wild.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print timings after each answer.")] = False,
    source: Annotated[str | None, typer.Option("--source", metavar="SOURCE", help="Where to pull it from.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="Engine, when it must be deployed first.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="API key of the front door (SLICE_API_KEY).")] = None,
    timeout: DurationOption = None,
) -> int:
    """Chat with a model, or ask it one question; pulls and deploys it when needed.

    The answer alone goes to standard output. Text piped into standard input is the question, or stands before it.
    """
    invocation: Invocation = ctx.obj
    terminal = invocation.terminal
    wish = starting.Wish(name=model, source=source, engine=engine, timeout_s=seconds(timeout))
    question = _question(invocation, prompt or [])
    client = reach.admin(invocation)
    door = reach.door(invocation, client, key)
    ended = starting.made_to_serve(client, invocation, wish)
    if isinstance(ended, NotServing):
        return told(ended, terminal, Output.TABLE)
    conversation = chat.Conversation(
        door=door,
        terminal=terminal,
        clock=invocation.clock,
        model=ended.public_name,
        options=ChatOptions(temperature=temperature, max_tokens=max_tokens, wants_usage=verbose),
        system=system,
        is_verbose=verbose,
    )
    if question:
        conversation.ask(question)
        return exits.OK
    return chat.converse(conversation)


def _question(invocation: Invocation, prompt: list[str]) -> str:
    """Return the question: what is piped in, then the words of the command line; empty for a conversation.

    Raises:
        Failure: `request.usage` when there is neither a question nor a terminal to talk on.
    """
    words = " ".join(prompt).strip()
    piped = invocation.terminal.piped_text(beside_prompt=bool(words))
    question = "\n\n".join(part for part in (piped, words) if part)
    if not question and not invocation.terminal.is_in_tty:
        raise Failure(
            "request.usage",
            "there is no question and no terminal to talk on",
            hint='`slice run MODEL "question"`, or pipe the question in',
        )
    return question
