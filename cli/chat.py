"""Talks with a model: one question, or a conversation on a terminal.

A front door and a model's public name come in; answers stream to standard output as they are written. Called by
`slice run`. Habits are Ollama's: /bye, triple quotes for several lines, Ctrl-C stops the answer, Ctrl-D ends.
"""

import contextlib
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from cli import exits
from cli.openai_door import ChatDoor, ChatOptions, Piece
from cli.terminal import Terminal
from core.clock import Clock
from core.errors import Failure, Kind

_QUOTES = '"""'
_PROMPT, _MORE = ">>> ", "... "
_HELP = """\
  /clear   forget the conversation
  /bye     leave (also Ctrl-D)
  \"\"\"      begin and end a message of several lines
  Ctrl-C   stop the answer"""
_FRESH_ROUTE_PATIENCE_S = 15.0
"""Longest wait for a door that is not ready for a model which is: its route may arrive a moment after the engine."""
_RETRY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How fast an answer came: seconds to the first piece and in all, and the engine's own token counts."""

    first_s: float
    total_s: float
    prompt_tokens: int | None
    answer_tokens: int | None

    def sentence(self) -> str:
        """Return the timings as one line, tokens per second counted from the first token on."""
        parts = [f"first token {1000 * self.first_s:.0f} ms", f"total {self.total_s:.2f} s"]
        if self.prompt_tokens is not None:
            parts.append(f"prompt {self.prompt_tokens} tokens")
        if self.answer_tokens is not None:
            parts.append(f"answer {self.answer_tokens} tokens")
            writing_s = self.total_s - self.first_s
            if self.answer_tokens > 1 and writing_s > 0:
                parts.append(f"{(self.answer_tokens - 1) / writing_s:.1f} tokens/s")
        return ", ".join(parts)


@dataclass(kw_only=True)
class Conversation:
    """One conversation with one model; it owns the messages so far."""

    door: ChatDoor
    terminal: Terminal
    clock: Clock
    model: str
    options: ChatOptions
    system: str = ""
    is_verbose: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Stream the answer to `question` to standard output and remember both.

        Raises:
            Failure: there was no whole answer; the question is forgotten.
            KeyboardInterrupt: the user stopped it; what came so far is remembered.
        """
        asked = [*self._opening(), *self.messages, {"role": "user", "content": question}]
        texts: list[str] = []
        try:
            self._stream(asked, texts)
        except KeyboardInterrupt:
            self._remember(question, "".join(texts))
            raise
        self._remember(question, "".join(texts))

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _remember(self, question: str, answer: str) -> None:
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _stream(self, asked: Sequence[dict[str, str]], texts: list[str]) -> None:
        begun = self.clock.monotonic()
        first_at: float | None = None
        usage: dict[str, object] = {}
        try:
            with contextlib.closing(self._pieces(asked)) as answer:
                for piece in answer:
                    if first_at is None and (piece.text or piece.thought):
                        first_at = self.clock.monotonic()
                    usage = dict(piece.usage) or usage
                    self._show(piece, texts)
        finally:
            if texts and not texts[-1].endswith("\n"):
                self.terminal.piece("\n")
        if self.is_verbose:
            ended = self.clock.monotonic()
            self._note_timings(begun, ended if first_at is None else first_at, ended, usage)

    def _show(self, piece: Piece, texts: list[str]) -> None:
        if piece.text:
            texts.append(piece.text)
            self.terminal.piece(piece.text)
        elif piece.thought and self.terminal.is_err_tty:
            self.terminal.aside(piece.thought)

    def _note_timings(self, begun: float, first_at: float, ended: float, usage: dict[str, object]) -> None:
        timings = Timings(
            first_s=first_at - begun,
            total_s=ended - begun,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            answer_tokens=_count(usage.get("completion_tokens")),
        )
        self.terminal.note(timings.sentence())

    def _pieces(self, asked: Sequence[dict[str, str]]) -> Generator[Piece, None, None]:
        """Yield the answer; while nothing of it has come, an unavailable door is asked again for a short time."""
        deadline = self.clock.monotonic() + _FRESH_ROUTE_PATIENCE_S
        pause = threading.Event()  # nobody sets it: its wait is a timer that Ctrl-C interrupts
        while True:
            has_begun = False
            try:
                for piece in self.door.chat(self.model, asked, self.options):
                    has_begun = True
                    yield piece
                return
            except Failure as failure:
                if has_begun or failure.kind is not Kind.UNAVAILABLE or self.clock.monotonic() > deadline:
                    raise
            pause.wait(_RETRY_S)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def converse(conversation: Conversation) -> int:
    """Talk until /bye or Ctrl-D and return the exit code."""
    terminal = conversation.terminal
    terminal.note(f"Talking with {conversation.model}. /? for help, /bye to leave.")
    _enable_editing()
    while True:
        try:
            text = _message()
        except EOFError:
            terminal.note("")
            return exits.OK
        except KeyboardInterrupt:
            terminal.note("\nCtrl-D or /bye leaves.")
            continue
        if text.startswith("/") and _QUOTES not in text:
            if not _obeyed(text, conversation):
                return exits.OK
        elif text.strip():
            _answered(text, conversation)


def _obeyed(word: str, conversation: Conversation) -> bool:
    """Obey a /word and return whether the conversation goes on."""
    match word.strip():
        case "/bye" | "/exit":
            return False
        case "/?" | "/help":
            conversation.terminal.note(_HELP)
        case "/clear":
            conversation.messages.clear()
            conversation.terminal.note("the conversation is forgotten")
        case other:
            conversation.terminal.note(f"{other.split(' ')[0]} is unknown; /? lists what there is")
    return True


def _answered(text: str, conversation: Conversation) -> None:
    try:
        conversation.ask(text)
    except KeyboardInterrupt:
        conversation.terminal.note("stopped")
    except Failure as failure:
        conversation.terminal.note(exits.rendered(failure))


def _enable_editing() -> None:
    """Let `input` edit lines and keep a history; both are gone when the process ends."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - importing it is what arms `input`; only a conversation needs it


def _message() -> str:
    """Read one message: a line, or several between triple quotes.

    Raises:
        EOFError: the user ended the input.
    """
    line = _read(_PROMPT)
    if not line.lstrip().startswith(_QUOTES):
        return line
    parts = [line.lstrip().removeprefix(_QUOTES)]
    while not parts[-1].rstrip().endswith(_QUOTES):
        parts.append(_read(_MORE))
    parts[-1] = parts[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(parts).strip("\n")


def _read(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    sys.stderr.write(prompt)  # the answers go to a file: the prompt must not
    sys.stderr.flush()
    return input()
